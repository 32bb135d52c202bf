"""Near-copies. Oracles: loops over pairs, the images themselves, the quantile's own definition, scipy, many draws."""

import math

import pytest
import torch
from scipy.stats import betabinom

from cdm_lightning.near_copies import NearCopies, nearest, nearest_distances
from tests.dummy_extractor import pictures


@pytest.mark.parametrize("rows", [2048, 4])
def test_distances_are_those_of_a_loop(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm_lightning.near_copies.ROWS", rows)
    images, training = pictures(6, 0), pictures(9, 1)
    slow = [min(float((a.double() - b.double()).square().mean().sqrt()) for b in training) for a in images]
    assert nearest_distances(images, training).tolist() == pytest.approx(slow, rel=1e-12)


def test_a_copy_is_at_distance_zero_and_one_grey_level_is_one() -> None:
    training = torch.cat([pictures(5, 0), torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)])
    assert nearest_distances(training, training).tolist() == [0.0] * 6
    assert float(nearest_distances(training[-1:] - 1, training[-1:])) == 1.0


def test_training_images_are_copies_and_held_out_ones_are_not() -> None:
    training, heldout = pictures(300, 0), pictures(400, 1)
    judge = NearCopies.of(training, heldout)
    assert judge.share(training).value == 1.0
    assert judge.share(heldout) == judge.heldout
    assert judge.heldout.value == pytest.approx(0.01, abs=1 / 400)
    assert judge.heldout.low < 0.01 < judge.heldout.high


def test_a_quarter_of_copies_is_counted() -> None:
    training, heldout = pictures(300, 0), pictures(400, 1)
    judge = NearCopies.of(training, heldout)
    far = 255 - torch.zeros(75, 3, 8, 8, dtype=torch.uint8)
    assert judge.share(torch.cat([training[:25], far])).value == 0.25


@pytest.mark.parametrize("rows", [2048, 4])
def test_the_nearest_one_is_that_of_a_loop(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm_lightning.near_copies.ROWS", rows)
    features, others = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (7, 11))
    slow = [[float((a.double() - b.double()).square().mean().sqrt()) for b in others] for a in features]
    found = nearest(features, others, 1)
    assert found.index[:, 0].tolist() == [row.index(min(row)) for row in slow]
    assert found.distance[:, 0].tolist() == pytest.approx([min(row) for row in slow], rel=1e-9)


def judge_of(distances: torch.Tensor, most: float = math.inf) -> NearCopies:
    """Return a judge whose held-out images are so far from the one training image, which is black and of one pixel."""
    return NearCopies.of(torch.zeros(1, 1), distances[:, None], most)


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_the_chance_is_that_of_a_beta_binomial_law(count: int) -> None:
    judge = judge_of(torch.arange(1, 301).double())  # the third smallest, 3.99, is the quantile's lower neighbour
    samples = torch.cat([torch.full((count,), 0.5), torch.full((40 - count,), 99.0)]).double()
    assert judge.chance(samples) == pytest.approx(float(betabinom.sf(count - 1, 40, 4, 297)), abs=1e-12)


def test_new_images_raise_an_alarm_as_often_as_the_chance_says() -> None:
    g, alarms = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        heldout, samples = (torch.rand(n, generator=g, dtype=torch.float64) for n in (150, 100))
        alarms += judge_of(heldout).chance(samples) < 0.05
    assert 0 < alarms / 400 < 0.05 + 0.03


def test_a_threshold_is_at_most_what_it_is_told() -> None:
    distances = torch.arange(1, 301).double()
    judge = judge_of(distances, 2.0)
    assert (judge.threshold, judge.heldout.value) == (2.0, 2 / 300)
    assert judge.chance(torch.full((10,), 1.5)) >= judge_of(distances).chance(torch.full((10,), 1.5))
