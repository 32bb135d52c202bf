"""Which source, part and shard a sample belongs to: functions of the sample alone, so they survive a removal."""

import re
from collections.abc import Sequence

from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.seeding import stable_hash, unit_hash
from datamodules.names import HELDOUT, PUBLIC, TRAIN, Part, check_source, slug
from datamodules.records import Record

SPLITS = ("class", "folder", "list", "random:N")


def default_split(from_: str) -> str:
    """Return what makes a source unless it is said: the owners that an origin names, or the classes of a data set."""
    return from_ if from_ in ("folder", "list") else "class"


def check_split(split: str) -> None:
    """Raise BadInput unless `split` is class, folder, list or random:N with N >= 1."""
    if split not in SPLITS[:3] and not re.fullmatch(r"random:[1-9][0-9]*", split):
        raise BadInput(f"split must be one of {', '.join(SPLITS)} with a number N, but is '{split}'")


def destination(record: Record, split: str, public_labels: frozenset[str], public_fraction: float) -> str:
    """Return the source of a record, `public` if it goes there: what its origin says is nobody's does.

    Raises:
        BadInput: the origin names no source, or it is no name for one.
    """
    if record.source == PUBLIC or record.label in public_labels or in_public_fraction(record.key, public_fraction):
        return PUBLIC
    return source_of(record, split)


def in_public_fraction(key: str, fraction: float) -> bool:
    """Tell whether the sample is among the `fraction` of all samples that goes to `public`."""
    return public_draw(key) < fraction


def public_draw(key: str) -> float:
    """Return the number in [0, 1) that decides whether the sample goes to `public`."""
    return unit_hash("public", key)


def source_of(record: Record, split: str) -> str:
    """Return the source that `split` gives to a record (see `destination`)."""
    if split == "class":
        return check_source(record.label, record.origin)
    if split.startswith("random:"):
        return random_part(record.key, int(split.removeprefix("random:")))
    return named_source(record, split)


def random_part(key: str, parts: int) -> str:
    """Return one of part0, part1, ..., as the hash of the key says."""
    return f"part{stable_hash('random-part', key) % parts}"


def named_source(record: Record, split: str) -> str:
    """Return the source that the origin itself names, which may be `public`."""
    if record.source is None:
        raise BadInput(f"split '{split}' needs images from a folder or list, but {record.origin} has no source")
    return record.source if record.source == PUBLIC else check_source(record.source, record.origin)


def public_labels(classes: Sequence[str], entries: Sequence[str | int]) -> frozenset[str]:
    """Return the labels that `entries` names, by label or by index into `classes`; a label wins over an index.

    Raises:
        BadInput: an entry is neither.
    """
    return frozenset(_public_label(classes, str(entry)) for entry in entries)


def _public_label(classes: Sequence[str], entry: str) -> str:
    if slug(entry) in classes:
        return slug(entry)
    if entry.isdecimal() and int(entry) < len(classes):
        return classes[int(entry)]
    raise BadInput(
        f"public class '{entry}' is neither a label nor an index below {len(classes)}; the labels are "
        f"{', '.join(classes)}{did_you_mean(entry, classes)}"
    )


def part_of(key: str, heldout_fraction: float) -> Part:
    """Return `heldout` for this fraction of the samples, `train` for the others."""
    return HELDOUT if heldout_draw(key) < heldout_fraction else TRAIN


def heldout_draw(key: str) -> float:
    """Return the number in [0, 1) that decides whether the sample is held out."""
    return unit_hash("heldout", key)


def shard_of(key: str, shards_per_source: int) -> str:
    """Return the file name of the sample's shard."""
    return f"{stable_hash('shard', key) % shards_per_source:05d}.tar"
