"""Compare the shards of a source with its manifest: the files byte for byte, then every sample in them."""

import hashlib
from pathlib import Path

from cdm_lightning.errors import ShardError
from datamodules.manifest import AGAIN, MANIFEST, Manifest, Shard, read_manifest
from datamodules.tars import RawSample, whole_shard


def verify_files(folder: Path) -> Manifest:
    """Return the manifest of a source's folder after comparing the bytes of every shard with it.

    Raises:
        ShardError: a shard is missing, left over, cut or changed, or the manifest is another source's.
    """
    manifest = read_manifest(folder)
    if manifest.source != folder.name:
        raise ShardError(f"{folder / MANIFEST} is of source '{manifest.source}', not of '{folder.name}': {AGAIN}")
    for name in sorted({path.name for path in folder.glob("*.tar")} ^ set(manifest.shards)):
        raise ShardError(
            f"source '{manifest.source}': {folder / name} is left over or missing, see {MANIFEST}: {AGAIN}"
        )
    for name, shard in manifest.shards.items():
        _verify_shard(folder / name, shard, manifest.source)
    return manifest


def _verify_shard(path: Path, shard: Shard, source: str) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"source '{source}': {path} cannot be read ({error.strerror}): {AGAIN}") from error
    if size != shard.bytes:
        raise ShardError(f"source '{source}': {path} has {size} bytes, not {shard.bytes} as in its manifest: {AGAIN}")
    if digest != shard.sha256:
        raise ShardError(
            f"source '{source}': {path} has sha256 {digest}, not {shard.sha256} as in its manifest: {AGAIN}"
        )


def all_samples(folder: Path, manifest: Manifest) -> list[RawSample]:
    """Return every sample in the shards of a source, sorted by key: exactly those of the manifest, each once.

    Raises:
        ShardError: a sample is not what the manifest says, or lies in two shards.
    """
    samples: dict[str, RawSample] = {}
    for name in manifest.shards:
        for sample in whole_shard(folder / name, manifest):
            if sample.key in samples:
                raise ShardError(
                    f"sample '{sample.key}' lies in both {samples[sample.key].shard} and {sample.shard}: {AGAIN}"
                )
            samples[sample.key] = sample
    return [samples[key] for key in sorted(samples)]
