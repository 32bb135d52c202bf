"""Read a shard: a tar of KEY.png and KEY.json, and nothing else; each sample is what the manifest says of it."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys

from cdm_lightning.errors import ShardError
from datamodules.manifest import AGAIN, Manifest, Sample

NAME = re.compile(r"[A-Za-z0-9_-]+\.(png|json)")
MEMBERS = {"png", "json"}
DAMAGE = (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)  # what tarfile raises


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in its shard; the image is not decoded."""

    key: str
    png: bytes
    label: str
    shard: Path


def read_shard(path: Path) -> Iterator[RawSample]:
    """Yield the samples of a tar in the order in which they lie there; nothing in it is unpickled or run.

    Raises:
        ShardError: the tar is missing or cut, has a member that is not KEY.png or KEY.json or is there twice, or a
            sample is not exactly one of each.
    """
    try:
        for sample in group_by_keys(_members(path)):
            yield _raw_sample(sample, path)
    except DAMAGE as error:
        raise ShardError(f"{path} cannot be read ({str(error) or type(error).__name__}): {AGAIN}") from error


def _members(path: Path) -> Iterator[dict[str, Any]]:
    """Yield name and content of the files in a tar, as webdataset's `group_by_keys` takes them.

    Webdataset's own reader also takes compressed tars and passes over links, devices and folders without a word.
    """
    names: set[str] = set()
    whole = path.read_bytes()  # slices of it are quicker than tarfile's own reading of members
    with tarfile.open(path, "r:", io.BytesIO(whole)) as tar:
        for member in tar:
            _check_member(member, path, len(whole))
            if member.name in names:
                raise ShardError(f"{path}: member {member.name!r} is there twice: {AGAIN}")
            names.add(member.name)
            content = whole[member.offset_data : member.offset_data + member.size]
            yield {"fname": member.name, "data": content, "__url__": str(path)}


def _check_member(member: tarfile.TarInfo, path: Path, end: int) -> None:
    """Raise ShardError unless a member is a plain file KEY.png or KEY.json whose bytes lie before the `end`."""
    if not NAME.fullmatch(member.name):
        raise ShardError(f"{path}: member {member.name!r} is not KEY.png or KEY.json: {AGAIN}")
    if not member.isreg() or member.issparse():
        raise ShardError(f"{path}: member {member.name!r} is no plain file: {AGAIN}")
    if member.offset_data + member.size > end:
        raise ShardError(f"{path}: member {member.name!r} is longer than the rest of the file: {AGAIN}")


def _raw_sample(sample: Mapping[str, Any], path: Path) -> RawSample:
    key, members = sample["__key__"], {name for name in sample if not name.startswith("__")}
    if members != MEMBERS:
        raise ShardError(f"{path}: sample '{key}' has {sorted(members)}, not one json and one png: {AGAIN}")
    return RawSample(key, sample["png"], _label(sample["json"], key, path), path)


def _label(record: bytes, key: str, path: Path) -> str:
    try:
        label = json.loads(record)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        label = None
    if not isinstance(label, str):
        raise ShardError(f"{path}: {key}.json holds no label: {AGAIN}")
    return label


def whole_shard(path: Path, manifest: Manifest) -> list[RawSample]:
    """Read all samples of a shard and compare them with the manifest.

    Raises:
        ShardError: as `read_shard`, or number, key, label or content of the samples are not what the manifest says.
    """
    samples, expected = list(read_shard(path)), manifest.shards[path.name].samples
    if len(samples) != expected:
        raise ShardError(f"{path} has {len(samples)} samples, not {expected} as in its manifest: {AGAIN}")
    for sample in samples:
        _check_sample(sample, manifest.samples.get(sample.key))
    return samples


def _check_sample(sample: RawSample, expected: Sample | None) -> None:
    if expected is None:
        raise ShardError(f"{sample.shard}: sample '{sample.key}' is not in its manifest: {AGAIN}")
    if sample.label != expected.label:
        raise ShardError(
            f"{sample.shard}: sample '{sample.key}' has label {sample.label!r}, not {expected.label!r} as in its "
            f"manifest: {AGAIN}"
        )
    if hashlib.sha256(sample.png).hexdigest() != expected.sha256:
        raise ShardError(f"{sample.shard}: sample '{sample.key}' has another image than its manifest says: {AGAIN}")
