"""Take samples out of the shards that hold them: all other bytes stay what they are, and the manifest follows.

What is left is what `shards` would have written without these samples, since a sample's shard depends on its key alone.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from cdm_lightning.errors import BadInput
from datamodules.manifest import MANIFEST, Manifest, Shard, manifest_text
from datamodules.publish import OLD, check_replaceable, mend, publish
from datamodules.tars import whole_shard
from datamodules.verification import verify_files

Files = dict[str, bytes | None]  # new content by name; None: the file goes


@dataclass(frozen=True)
class Rewritten:
    """A file that was written anew: its path below the root, its sha256 before and after; None after: it is gone."""

    path: str
    before: str
    after: str | None


@dataclass(frozen=True)
class Purge:
    """What taking samples out of their shards does.

    Attributes:
        rewritten: the files.
        origins: where the images came from, as their shards say; nothing there is touched.
    """

    rewritten: list[Rewritten]
    origins: list[str]


def check_purgeable(root: Path, sources: AbstractSet[str]) -> None:
    """Check that rewriting the shards of these sources would leave none of their images behind, nor lose other files.

    Raises:
        BadInput: a folder or a shard is a link, or there are other files than shards.
        ShardError: the shards are not what their manifest says.
    """
    for source in sorted(sources):
        folder = root / source
        for path in (folder, *sorted(folder.iterdir())):
            if path.is_symlink():
                raise BadInput(
                    f"'{path}' is a link, and rewriting it would leave the image where it points: put the files there "
                    "in its place"
                )
        check_replaceable(folder)
        verify_files(folder)


def planned_purge(root: Path, keys: Mapping[str, AbstractSet[str]]) -> Purge:
    """Return what `purge` would do."""
    planned = [(root / source, *_without(root / source, gone)) for source, gone in sorted(keys.items())]
    rewritten = [file for folder, files, _ in planned for file in _compared(folder, files)]
    return Purge(rewritten, sorted(origin for _, _, origins in planned for origin in origins))


def purge(root: Path, keys: Mapping[str, AbstractSet[str]]) -> Purge:
    """Rewrite the shards and manifests of sources without some of their samples, all of them or none.

    What a killed purge left is undone or finished first. A source without any sample left is removed.

    Args:
        root: folder of the shards.
        keys: of the samples that go, by source; all of them must be there.

    Raises:
        BadInput: `root` cannot be written; the shards are as they were.
        ShardError: the shards are not what their manifest says.
    """
    mend(root)
    done = planned_purge(root, keys)
    if keys:
        publish(root, lambda new: _write(root, keys, new))
    if (root / OLD).exists():
        raise BadInput(f"'{root / OLD}' still holds the images and cannot be removed: delete it")
    return done


def _write(root: Path, keys: Mapping[str, AbstractSet[str]], new: Path) -> None:
    for source, gone in sorted(keys.items()):
        _write_source(root / source, gone, new / source)


def _write_source(folder: Path, gone: AbstractSet[str], new: Path) -> None:
    """Write a source without some samples; an empty folder, if none is left, makes `publish` remove it."""
    new.mkdir(parents=True)
    files, _ = _without(folder, gone)
    for path in sorted(folder.iterdir()):
        data = files.get(path.name, b"")
        if path.name not in files:
            shutil.copyfile(path, new / path.name)
        elif data is not None:
            (new / path.name).write_bytes(data)


def _without(folder: Path, gone: AbstractSet[str]) -> tuple[Files, list[str]]:
    """Return the files of a source that change when samples go, and where these samples came from."""
    manifest = verify_files(folder)
    files: Files = {}
    shards, origins = dict(manifest.shards), list[str]()
    for name in sorted(manifest.shards):
        held = {sample.key for sample in whole_shard(folder / name, manifest)}
        if here := held & gone:
            origins += _origins(folder / name, here)
            data = _cut(folder / name, here) if held - here else None
            files[name] = data
            del shards[name]
            if data is not None:
                shards[name] = Shard(hashlib.sha256(data).hexdigest(), len(data), len(held - here))
    samples = {key: sample for key, sample in manifest.samples.items() if key not in gone}
    files[MANIFEST] = _text(replace(manifest, shards=shards, samples=samples)) if samples else None
    return files, origins


def _text(manifest: Manifest) -> bytes:
    return manifest_text(manifest).encode()


def _cut(path: Path, gone: AbstractSet[str]) -> bytes:
    """Return a tar without the members of some samples: all other members byte for byte, in the same order."""
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
    data, kept, start = path.read_bytes(), bytearray(), 0
    for member in members:
        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if member.name.rpartition(".")[0] not in gone:
            kept += data[start:end]
        start = end
    kept += bytes(2 * tarfile.BLOCKSIZE)
    return bytes(kept) + bytes(-len(kept) % tarfile.RECORDSIZE)


def _origins(path: Path, keys: AbstractSet[str]) -> list[str]:
    """Return what the tar says of where samples came from; nothing of those of which it says nothing."""
    found = []
    with tarfile.open(path, "r:") as tar:
        for key in sorted(keys):
            record = tar.extractfile(f"{key}.json")
            assert record is not None, "whole_shard has seen it"
            origin = json.loads(record.read()).get("origin")
            found += [origin] if isinstance(origin, str) else []
    return found


def _compared(folder: Path, files: Files) -> list[Rewritten]:
    return [
        Rewritten(
            f"{folder.name}/{name}",
            hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            None if data is None else hashlib.sha256(data).hexdigest(),
        )
        for name, data in sorted(files.items())
    ]
