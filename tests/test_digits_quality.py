"""The demo's store, trained as shipped: its digits are digits, and they are not copies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from cdm_lightning.cli import main
from cdm_lightning.evaluation import heldout_errors
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from datamodules import ShardDataModule

SOURCES = [f"digit{k}" for k in range(10)]
QUIET = (
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.logger",
    "false",
    "--trainer.enable_checkpointing",
    "false",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the shards and the store of the demo's configuration, and 1000 samples in `out`."""
    place = tmp_path_factory.mktemp("demo")
    where = ("--data.root", str(place / "shards"), "--store", str(place / "store"))
    assert main(["fit", "--config", "digits_shards.yaml", *where, *QUIET]) == 0
    store, out = str(place / "store"), str(place / "out")
    assert (
        main(["sample", "--store", store, "--sources", "all", "--n", "1000", "--batch_size", "250", "--out", out]) == 0
    )
    return place


def samples(demo: Path) -> tuple[np.ndarray, list[str]]:
    """Return the grey levels [n, 64] of the samples, and the source that each followed."""
    images = json.loads((demo / "out" / "credits.json").read_text())["images"]
    levels = [np.asarray(Image.open(demo / "out" / image["file"])).ravel() for image in images]
    return np.stack(levels).astype(float), [image["drawn"] for image in images]


def real(demo: Path, part: str) -> np.ndarray:
    """Return the grey levels [n, 64] of all sources' images of a part."""
    data = ShardDataModule(str(demo / "shards"))
    return np.concatenate([data.images(source, part)[1].flatten(1).numpy() for source in SOURCES]).astype(float)  # type: ignore[arg-type]


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each image to the nearest of the others."""
    return torch.cdist(torch.from_numpy(images), torch.from_numpy(others)).amin(1).numpy()


def test_each_source_s_samples_are_its_digit(demo: Path) -> None:
    digits = load_digits()
    classifier = SVC(C=10).fit(digits.data * 255 / 16, digits.target)
    images, drawn = samples(demo)
    said = [f"digit{k}" for k in classifier.predict(images)]
    for source in SOURCES:
        mine = [guess == source for guess, true in zip(said, drawn, strict=True) if true == source]
        assert len(mine) > 50
        assert np.mean(mine) >= 0.8, f"{source}: {np.mean(mine):.0%}"


def test_samples_are_no_copies_of_training_images(demo: Path) -> None:
    train, heldout = real(demo, "train"), real(demo, "heldout")
    limit = np.quantile(nearest(heldout, train), 0.01)
    assert (nearest(samples(demo)[0], train) < limit).mean() <= 0.05
    assert (nearest(train, train) < limit).all(), "copies would be noticed"


def test_credits_agree_with_the_source_that_was_followed(demo: Path) -> None:
    images = json.loads((demo / "out" / "credits.json").read_text())["images"]
    assert np.mean([max(image["credits"], key=image["credits"].get) == image["drawn"] for image in images]) > 0.9


def test_the_network_is_below_the_closed_form_on_held_out_images(demo: Path) -> None:
    compartments = open_compartments(Store.open(demo / "store"), "all", sigma_switch=float("inf"), device="cpu")
    data = ShardDataModule(str(demo / "shards"))
    images = {source: from_uint8(data.images(source, "heldout")[1]) for source in SOURCES}
    errors = heldout_errors(compartments, images, sigmas=(0.3, 0.5))
    closed, network = (
        torch.tensor([row[kind] for row in errors.values()]).mean(0) for kind in ("closed_form", "network")
    )
    assert (network < closed).all(), f"{network} against {closed}"
