"""Copies of images. Oracles: the set of distinct images, sums of differences."""

import shutil
from pathlib import Path

import torch

from benchmarks.inflation import nearly
from datamodules import ShardDataModule
from tests.made_shards import PER_SOURCE, SIZE, save_images, write


def test_exact_copies_count_once_though_they_can_bring_held_out_images_into_training(tmp_path: Path) -> None:
    images = save_images(tmp_path / "images")
    write(tmp_path / "honest", images, public_fraction=0.0)
    for copy in range(20):
        for file in sorted((images / "alice").glob("??.png")):
            shutil.copy(file, file.with_name(f"copy{copy}-{file.name}"))
    write(tmp_path / "copied", images, public_fraction=0.0)
    honest, copied = (
        ShardDataModule(str(tmp_path / name), image_size=SIZE, channels=3) for name in ("honest", "copied")
    )
    _, training, _ = copied.images("alice", "train")
    assert len(training) == len(training.unique(dim=0)) == PER_SOURCE
    assert len(honest.used("alice", "train")) + len(honest.used("alice", "heldout")) == PER_SOURCE
    assert len(copied.used("alice", "heldout")) == 0
    assert honest.used("bob", "train").keys() == copied.used("bob", "train").keys()


def test_near_copies_differ_by_one_grey_level_in_one_pixel_and_are_all_distinct() -> None:
    images = torch.randint(256, (5, 1, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    copies = nearly(images, 9)
    difference = (copies.long() - images.repeat(9, 1, 1, 1).long()).abs().flatten(1)
    assert difference.sum(1).tolist() == [1] * 45
    assert len(copies.unique(dim=0)) == 45
