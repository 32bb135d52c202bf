"""The manifest of a source: what its shards hold. It is the only guard against a cut or changed tar."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from cdm_lightning.errors import ShardError
from datamodules.names import HELDOUT, TRAIN, Part, is_key, is_label, is_shard, is_source

MANIFEST = "manifest.json"
FILTERED = "FILTERED"  # in the folder of `public`, if images that a source holds were left out of it
AGAIN = "write the shards again"
Entry = TypeVar("Entry", "ImageShape", "Shard", "Sample")


@dataclass(frozen=True)
class ImageShape:
    """Every image is uint8 [channels, size, size]."""

    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class Shard:
    """One tar: sha256 and length of the file, number of samples in it."""

    sha256: str
    bytes: int
    samples: int


@dataclass(frozen=True)
class Sample:
    """One image: sha256 of its PNG bytes, its class, and its part, `train` or `heldout`."""

    sha256: str
    label: str
    part: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a source's shards; `shards` by file name, `samples` by key."""

    source: str
    licence: str
    image: ImageShape
    shards: dict[str, Shard]
    samples: dict[str, Sample]


def manifest_text(manifest: Manifest) -> str:
    """Return what manifest.json says; the same manifest gives the same text."""
    return json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json in one step."""
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(manifest_text(manifest), encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises:
        ShardError: it is missing or not what `write_manifest` writes.
    """
    path = folder / MANIFEST
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition))
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing: {AGAIN}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is no manifest ({error}): {AGAIN}") from error


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; of two entries with one name `json` would keep the last without a word."""
    value = dict(pairs)
    if len(value) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"'{name}' is there twice")
    return value


def _parse(value: object) -> Manifest:
    names = {field.name for field in fields(Manifest)}
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"it must have {', '.join(sorted(names))}")
    manifest = Manifest(
        source=_text(value["source"], "source"),
        licence=_text(value["licence"], "licence"),
        image=_entry(ImageShape, value["image"], "image"),
        shards=_entries(Shard, value["shards"], "shards"),
        samples=_entries(Sample, value["samples"], "samples"),
    )
    _check_values(manifest)
    return manifest


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text")
    return value


def _entries(kind: type[Entry], value: object, where: str) -> dict[str, Entry]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping")
    return {name: _entry(kind, entry, f"{where}, {name}") for name, entry in value.items()}


def _entry(kind: type[Entry], value: object, where: str) -> Entry:
    types = {field.name: field.type for field in fields(kind)}
    if not isinstance(value, dict) or {name: type(item) for name, item in value.items()} != types:
        raise ValueError(f"{where} must have {', '.join(types)}, of the right types")
    return kind(**value)


def _check_values(manifest: Manifest) -> None:
    """Raise ValueError at a name that could lead out of the folder, an unknown part or a count that is off."""
    if not is_source(manifest.source):
        raise ValueError(f"'{manifest.source}' cannot name a source")
    for name in manifest.shards:
        if not is_shard(name):
            raise ValueError(f"'{name}' cannot name a shard")
    for key, sample in manifest.samples.items():
        if not is_key(key) or sample.part not in (TRAIN, HELDOUT) or not is_label(sample.label):
            raise ValueError(f"sample {key!r} of class {sample.label!r} in part {sample.part!r}")
    if sum(shard.samples for shard in manifest.shards.values()) != len(manifest.samples):
        raise ValueError("its shards and its samples do not add up")


def usable(manifest: Manifest, part: Part, exclude: AbstractSet[str]) -> dict[str, Sample]:
    """Return the samples of a part that are used, by key in sorted order.

    Excluded keys go first. Of equal contents the one with the smallest key stays, and what is in the training part is
    left out of the held-out part.
    """
    train = _distinct(_part(manifest, TRAIN, exclude), frozenset())
    if part == TRAIN:
        return train
    return _distinct(_part(manifest, part, exclude), {sample.sha256 for sample in train.values()})


def _part(manifest: Manifest, part: Part, exclude: AbstractSet[str]) -> dict[str, Sample]:
    return {key: sample for key, sample in manifest.samples.items() if sample.part == part and key not in exclude}


def _distinct(samples: Mapping[str, Sample], seen: AbstractSet[str]) -> dict[str, Sample]:
    contents = set(seen)
    kept: dict[str, Sample] = {}
    for key in sorted(samples):
        if samples[key].sha256 not in contents:
            contents.add(samples[key].sha256)
            kept[key] = samples[key]
    return kept


def data_sha256(samples: Mapping[str, Sample]) -> str:
    """Return the sha256 of the sorted lines `key sha256 label` of what is used."""
    lines = [f"{key} {sample.sha256} {sample.label}\n" for key, sample in sorted(samples.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
