"""Random sources and their training order, computed slowly from the text of the design alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from datamodules.encoding import Encoded
from datamodules.manifest import Manifest, Sample, read_manifest
from datamodules.plan import Plan
from datamodules.writer import write_source
from tests.made_shards import png

PNG = png(0, (1, 1))


@dataclass(frozen=True)
class Case:
    """A source of `samples` samples in `shards` tars, of which those in `left_out` are not used."""

    samples: int
    shards: int
    left_out: frozenset[int]
    seed: int
    source: str

    @property
    def keys(self) -> list[str]:
        return [f"k{k}" for k in range(self.samples)]

    @property
    def used(self) -> list[str]:
        return [key for k, key in enumerate(self.keys) if k not in self.left_out]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    samples = draw(st.integers(1, 16))
    left_out = draw(st.sets(st.integers(0, samples - 1), max_size=samples - 1))
    return Case(
        samples,
        draw(st.integers(1, 4)),
        frozenset(left_out),
        draw(st.integers(0, 5)),
        draw(st.sampled_from(["ann", "ben"])),
    )


def write_keys(root: Path, source: str, keys: Sequence[str], shards: int) -> Path:
    """Write a source whose images all look the same, and return its folder."""
    entry = Encoded(PNG, Sample(hashlib.sha256(PNG).hexdigest(), "x", "train"), "origin")
    plan = Plan("list", None, "list", 1, 1, [], 0, 0, shards)
    write_source(root / source, dict.fromkeys(keys, entry), plan)
    return root / source


class Written:
    """The shards of each case, written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, case: Case) -> tuple[Path, Manifest]:
        root = self.root / f"{case.samples}-{case.shards}"
        if not (root / case.source).exists():
            write_keys(root, case.source, case.keys, case.shards)
        return root / case.source, read_manifest(root / case.source)


def hashed(*parts: object) -> bytes:
    """Return the first eight bytes of a sha256, all but the lowest bit: what orders shards and samples."""
    number = int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")
    return (number >> 1).to_bytes(8, "big")


def reference_epoch(case: Case, epoch: int) -> list[str]:
    """Return the used keys in the order of an epoch, from the text of the design alone."""
    order = []
    for key in case.used:
        tar = f"{int.from_bytes(hashed('shard', key), 'big') % case.shards:05d}.tar"
        order.append((hashed(case.seed, case.source, epoch, tar), hashed(case.seed, case.source, epoch, key), key))
    return [key for _, _, key in sorted(order)]


def reference_batches(case: Case, size: int, number: int) -> list[list[str]]:
    """Return the first batches of the endless sequence, which runs on from epoch to epoch."""
    keys = [key for epoch in range(1 + number * size // len(case.used)) for key in reference_epoch(case, epoch)]
    return [keys[size * g : size * (g + 1)] for g in range(number)]
