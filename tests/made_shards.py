"""Small folders of images and shards of them, and an attacker who changes a shard and makes its manifest agree."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdm_lightning.errors import ShardError
from datamodules import ShardDataModule
from datamodules.manifest import read_manifest
from datamodules.origins import OriginName
from datamodules.plan import Plan
from datamodules.tars import read_shard
from datamodules.writer import write_shards

SOURCES = ("alice", "bob")
PER_SOURCE = 40
SIZE = 6
Member = tuple[tarfile.TarInfo, bytes]


def noise(seed: int, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> Image.Image:
    """Return an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(seed: int, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> bytes:
    """Return a PNG of random pixels."""
    buffer = io.BytesIO()
    noise(seed, shape).save(buffer, format="PNG")
    return buffer.getvalue()


def save_images(root: Path, count: int = PER_SOURCE) -> Path:
    """Save a folder of two sources with `count` images each, and return it."""
    for s, source in enumerate(SOURCES):
        (root / source).mkdir(parents=True)
        for k in range(count):
            noise(100 * s + k).save(root / source / f"{k:02d}.png")
    return root


def write(
    root: Path,
    images: Path,
    *,
    from_: OriginName = "folder",
    split: str = "folder",
    size: int = SIZE,
    channels: int = 3,
    public_classes: Sequence[str | int] = (),
    public_fraction: float = 0.2,
    heldout_fraction: float = 0.25,
    shards_per_source: int = 4,
    drop_from_public: bool = False,
) -> dict[str, int]:
    """Write shards, with settings that suit `save_images`."""
    plan = Plan(
        from_=from_,
        input=str(images),
        split=split,
        image_size=size,
        channels=channels,
        public_classes=public_classes,
        public_fraction=public_fraction,
        heldout_fraction=heldout_fraction,
        shards_per_source=shards_per_source,
        drop_from_public=drop_from_public,
    )
    return write_shards(root, plan)


def content(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `root` by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def keys_in(path: Path) -> list[str]:
    """Return the keys in a tar, in the order of its members."""
    with tarfile.open(path) as tar:
        return [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")]


def shard_of_key(folder: Path) -> dict[str, str]:
    """Return which tar of a source each key lies in."""
    return {key: path.name for path in folder.glob("*.tar") for key in keys_in(path)}


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Member:
    """Return a member of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), "target"
    return info, data


def members_of(path: Path) -> list[Member]:
    """Return the members of a tar of ours."""
    with tarfile.open(path) as tar:
        return [member(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def save_tar(path: Path, members: Sequence[Member]) -> None:
    """Write a tar."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` change the manifest of a source."""
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def agree(path: Path, samples: int | None = None) -> None:
    """Make the manifest agree with a changed tar: length, sha256 and, if given, the number of samples."""

    def change(values: dict[str, Any]) -> None:
        shard, data = values["shards"][path.name], path.read_bytes()
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        shard |= {} if samples is None else {"samples": samples}

    change_manifest(path.parent, change)


def agree_on_samples(folder: Path) -> None:
    """Make the manifest agree with all samples in the tars of a source, in content and label."""
    parts = {key: sample.part for key, sample in read_manifest(folder).samples.items()}

    def change(values: dict[str, Any]) -> None:
        values["samples"] = {}
        for path in sorted(folder.glob("*.tar")):
            for sample in read_shard(path):
                entry = {"sha256": hashlib.sha256(sample.png).hexdigest(), "label": sample.label}
                values["samples"][sample.key] = entry | {"part": parts.get(sample.key, "train")}

    change_manifest(folder, change)


def largest(folder: Path) -> Path:
    """Return the tar of a source with the highest number."""
    return max(folder.glob("*.tar"))


def data_of(folder: Path, num_workers: int = 0) -> ShardDataModule:
    """Return a data module for shards of `write`, of which `folder` is one source."""
    return ShardDataModule(str(folder.parent), image_size=SIZE, channels=3, batch_size=4, num_workers=num_workers)


def said_of(folder: Path) -> str:
    """Return what the data module says of a damaged source; it is one line."""
    with pytest.raises(ShardError) as caught:
        data_of(folder).verify(folder.name)
    assert "\n" not in str(caught.value)
    return str(caught.value)
