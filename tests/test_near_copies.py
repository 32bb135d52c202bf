"""Near-copies. Oracles: loops over pairs, the images themselves, the quantile's own definition."""

import pytest
import torch

from cdm_lightning.near_copies import NearCopies, nearest_distances
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
