"""Write images as shards, DIR/SOURCE/{manifest.json, NNNNN.tar} of KEY.png and KEY.json; same input, same bytes."""

import hashlib
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datamodules.encoding import Encoded, Sources, encode_sources
from datamodules.manifest import FILTERED, ImageShape, Manifest, Shard, write_manifest
from datamodules.names import PUBLIC
from datamodules.origins import read_origin
from datamodules.overlap import drop_shared
from datamodules.plan import Plan
from datamodules.publish import publish
from datamodules.splits import shard_of


def write_shards(root: Path, plan: Plan) -> dict[str, int]:
    """Write the shards of all sources below `root`, in one step; folders of other sources there are left alone.

    Returns:
        The number of samples of each source that was written, `public` among them.

    Raises:
        BadInput: the images cannot be used, or `root` cannot be written.
    """
    sources = drop_shared(encode_sources(read_origin(plan.from_, plan.input), plan), plan.drop_from_public)
    publish(root, lambda new: write_sources(new, sources, plan))
    return {source: len(samples) for source, samples in sorted(sources.items())}


def write_sources(folder: Path, sources: Sources, plan: Plan) -> None:
    """Write one folder of shards per source below `folder`."""
    for source, samples in sources.items():
        write_source(folder / source, samples, plan)
    if plan.drop_from_public and PUBLIC in sources:
        (folder / PUBLIC / FILTERED).write_text("images that a source holds were left out (--drop-from-public)\n")


def write_source(folder: Path, samples: Mapping[str, Encoded], plan: Plan) -> None:
    """Write shards and manifest of the source that `folder` is named by; a shard without samples is not written."""
    folder.mkdir(parents=True)
    keys: dict[str, list[str]] = defaultdict(list)
    for key in sorted(samples):
        keys[shard_of(key, plan.shards_per_source)].append(key)
    shards = {name: _write_shard(folder / name, [(key, samples[key]) for key in keys[name]]) for name in sorted(keys)}
    entries = {key: encoded.sample for key, encoded in samples.items()}
    image = ImageShape(plan.image_size, plan.channels)
    write_manifest(folder, Manifest(folder.name, plan.licence, image, shards, entries))


def _write_shard(path: Path, samples: Sequence[tuple[str, Encoded]]) -> Shard:
    data = _tar(member for key, encoded in samples for member in encoded.members(key))
    path.write_bytes(data)
    return Shard(hashlib.sha256(data).hexdigest(), len(data), len(samples))


def _tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar of the members, without times and users: the same members give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
