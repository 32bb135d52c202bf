"""The benchmark of forgetting. Oracles: curves made by hand, the steps of a fit, KID of the same pictures."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.convergence import Point, Watch, compared, curve, first_near_best, mean_error
from benchmarks.forgetting import MONOLITH, PARTS, TRAINED, of_curves, same_bytes
from benchmarks.forgetting_tables import summary
from benchmarks.kid_differences import kids
from benchmarks.quality_stores import SOURCES
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.store import Store

PART = [Point(0, 2, 1.2), Point(10, 4, 1.02), Point(20, 6, 1.009), Point(30, 8, 1.0), Point(40, 10, 0.9)]
WHOLE = [Point(0, 5, 1.2), Point(80, 20, 1.0), Point(160, 40, 0.905), Point(240, 60, 0.9)]


def test_the_first_point_near_the_best_is_found() -> None:
    assert first_near_best(PART) == PART[4]
    assert first_near_best(PART[:4]) == PART[2]
    assert first_near_best(PART[:4], near=0.02) == PART[1]
    assert first_near_best(PART[:1]) == PART[0]
    risen = [*PART[:4], Point(40, 10, 1.5)]
    assert first_near_best(risen) == PART[2]


def test_a_part_is_compared_after_as_many_passes() -> None:
    """Half of the monolith's 240 steps leave its first two points, and of the part's those up to step 15."""
    half, whole = compared(PART, WHOLE, parts=8, batch=64)
    assert half["monolith"] == {"step": 80, "seconds": 20, "error": 1.0, "images": 80 * 64, "budget": 120}
    assert half["part"] == {"step": 10, "seconds": 4, "error": 1.02, "images": 10 * 64, "budget": 15}
    assert (half["images_ratio"], half["seconds_ratio"]) == (10 / 80, 4 / 20)
    assert (whole["monolith"]["step"], whole["monolith"]["budget"]) == (160, 240)
    assert (whole["part"]["step"], whole["part"]["budget"]) == (20, 30)
    assert (whole["images_ratio"], whole["seconds_ratio"]) == (20 / 160, 6 / 40)


def test_every_noise_level_weighs_alike() -> None:
    assert math.isclose(mean_error([1e-4, 1e-2]), 1e-3)
    assert math.isclose(mean_error([1.01e-4, 1e-2]), mean_error([1e-4, 1.01e-2]))


def test_part_and_monolith_have_as_many_clusters_and_train_alike() -> None:
    assert MONOLITH.clusters == PARTS.clusters * SOURCES[PARTS.split]
    assert (PARTS.backbone, MONOLITH.split) == (MONOLITH.backbone, "union")
    assert {"split", "clusters"}.isdisjoint(TRAINED)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_a_curve_is_of_what_a_fit_trains(store: Path, workplace: Path, tmp_path: Path) -> None:
    place = export_backbone(Store.open(store), tmp_path / "store").path
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards"), "--store", str(place)]
    trained = ["--model.compartment", "full", "--trainer.max_steps", "6", "--data.sources", "[digit0]"]
    held_out = torch.rand(5, 1, 8, 8) * 2 - 1
    points = curve([*where, *trained], "digit0", held_out, every=3)
    assert [point.step for point in points] == [0, 3, 6]
    assert all(one.seconds < other.seconds for one, other in zip(points, points[1:], strict=False))
    again = curve([*where, *trained], "digit0", held_out, every=2)
    assert [point.step for point in again] == [0, 2, 4, 6]
    assert [again[0].error, again[3].error] == [points[0].error, points[2].error]  # measuring changes nothing
    assert points[0].error != points[2].error


def test_seconds_leave_out_the_measuring() -> None:
    watch = Watch(lambda denoise: 0.0, 1)
    watch.begun, watch.measuring = 10.0, 3.0
    assert watch.seconds_until(20.0) == 7.0


def test_stores_of_the_same_bytes_have_the_same_samples(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    fewer = Path(shutil.copytree(store, tmp_path / "fewer"))
    Store.open(fewer).remove_compartment("digit2")
    stores = {"before": Store.open(store), "same": Store.open(copy), "fewer": Store.open(fewer)}
    assert same_bytes(stores["before"], stores["same"], "digit0")
    held_out = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = kids(stores, held_out, n=12)["rows"]
    for name in ("before", "same"):
        assert rows[name]["more_than_before"] == {"value": 0, "low": 0, "high": 0}
        assert rows[name]["same_pictures_as_before"] == 12
    assert rows["fewer"]["same_pictures_as_before"] < 12
    difference = rows["fewer"]["kid"]["value"] - rows["before"]["kid"]["value"]
    assert rows["fewer"]["more_than_before"]["value"] == pytest.approx(difference)


def test_the_summary_shows_what_was_found() -> None:
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    row = {"kid": interval, "more_than_before": interval, "same_pictures_as_before": 3}
    forms = {"seconds": {"cpu": 10.0}, "kid": {"rows": {"after": row}}}
    text = summary({"closed_forms": forms, **of_curves({"part": PART, "monolith": WHOLE})})
    assert "| trained part, of 30 steps | 20 | 1,280 | 0.125 | 6 | 0.150 |" in text
    assert "| trained monolith, of 240 steps | 160 | 10,240 | 1 | 40 | 1 |" in text
    assert "| closed forms of the part, whole command | 0 | 0 | 0 | 10 | 0.500 |" in text
    assert "| after | 0.5000 [0.2500, 0.7500] | 0.5000 [0.2500, 0.7500] | 3 |" in text
