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


@dataclass(frozen=True)
class Place:
    """Where a sample lies in the bytes of its shard."""

    key: str
    label: str
    png: slice


@dataclass(frozen=True)
class Checked:
    """A shard that was compared with its manifest: the hash of the file, and where its samples lie."""

    sha256: bytes
    places: tuple[Place, ...]


def read_shard(path: Path) -> Iterator[RawSample]:
    """Yield the samples of a tar in the order in which they lie there; nothing in it is unpickled or run.

    Raises:
        ShardError: the tar is missing or cut, has a member that is not KEY.png or KEY.json or is there twice, or a
            sample is not exactly one of each.
    """
    whole = _content(path)  # slices of it are quicker than tarfile's own reading of members
    for place in _places(whole, path):
        yield RawSample(place.key, whole[place.png], place.label, path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> ShardError:
    return ShardError(f"{path} cannot be read ({str(error) or type(error).__name__}): {AGAIN}")


def _places(whole: bytes, path: Path) -> Iterator[Place]:
    try:
        for sample in group_by_keys(_members(whole, path)):
            yield _place(sample, whole, path)
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _members(whole: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """Yield names and places of the files in a tar, as webdataset's `group_by_keys` takes names and contents.

    Webdataset's own reader also takes compressed tars and passes over links, devices and folders without a word.
    """
    names: set[str] = set()
    with tarfile.open(path, "r:", io.BytesIO(whole)) as tar:
        for member in tar:
            _check_member(member, path, len(whole))
            if member.name in names:
                raise ShardError(f"{path}: member {member.name!r} is there twice: {AGAIN}")
            names.add(member.name)
            place = slice(member.offset_data, member.offset_data + member.size)
            yield {"fname": member.name, "data": place, "__url__": str(path)}


def _check_member(member: tarfile.TarInfo, path: Path, end: int) -> None:
    """Raise ShardError unless a member is a plain file KEY.png or KEY.json whose bytes lie before the `end`."""
    if not NAME.fullmatch(member.name):
        raise ShardError(f"{path}: member {member.name!r} is not KEY.png or KEY.json: {AGAIN}")
    if not member.isreg() or member.issparse():
        raise ShardError(f"{path}: member {member.name!r} is no plain file: {AGAIN}")
    if member.offset_data + member.size > end:
        raise ShardError(f"{path}: member {member.name!r} is longer than the rest of the file: {AGAIN}")


def _place(sample: Mapping[str, Any], whole: bytes, path: Path) -> Place:
    key, members = sample["__key__"], {name for name in sample if not name.startswith("__")}
    if members != MEMBERS:
        raise ShardError(f"{path}: sample '{key}' has {sorted(members)}, not one json and one png: {AGAIN}")
    return Place(key, _label(whole[sample["json"]], key, path), sample["png"])


def _label(record: bytes, key: str, path: Path) -> str:
    try:
        label = json.loads(record)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        label = None
    if not isinstance(label, str):
        raise ShardError(f"{path}: {key}.json holds no label: {AGAIN}")
    return label


def whole_shard(path: Path, manifest: Manifest, seen: dict[str, Checked] | None = None) -> list[RawSample]:
    """Read all samples of a shard and compare them with the manifest.

    Args:
        path: of the tar.
        manifest: says what is in it.
        seen: by file name, what was read and compared before; a shard that has still the same bytes is only cut up.

    Raises:
        ShardError: as `read_shard`, or number, key, label or content of the samples are not what the manifest says.
    """
    whole, seen = _content(path), {} if seen is None else seen
    sha256, before = hashlib.sha256(whole).digest(), seen.get(path.name)
    if before is None or before.sha256 != sha256:
        before = seen[path.name] = Checked(sha256, _checked(whole, path, manifest))
    return [RawSample(place.key, whole[place.png], place.label, path) for place in before.places]


def _checked(whole: bytes, path: Path, manifest: Manifest) -> tuple[Place, ...]:
    places, expected = tuple(_places(whole, path)), manifest.shards[path.name].samples
    if len(places) != expected:
        raise ShardError(f"{path} has {len(places)} samples, not {expected} as in its manifest: {AGAIN}")
    for place in places:
        _check_sample(RawSample(place.key, whole[place.png], place.label, path), manifest.samples.get(place.key))
    return places


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
