"""The benchmark of held-out credits. Oracles: counts by hand, new draws of images."""

import pytest
import torch
from torch import Tensor

from benchmarks.credit_accuracy import calibration_interval, classwise_errors, scores, shares, table
from cdm_lightning.attribution import calibration_error

VALUE = torch.tensor([[3.0, 1.0, -1.0, -2.0], [1.0, 3.0, 2.0, -1.0]])  # [source, image]: two images of each source
POSITIVE = torch.tensor([[0.75, 0.25, 0.0, torch.nan], [0.25, 0.75, 1.0, torch.nan]])


def test_scores_by_hand() -> None:
    found = scores(VALUE, POSITIVE, ["a", "b"], [2, 2], 0)
    assert found["accuracy"][0] == 3 / 4
    assert [found["by_source"][name][0] for name in ("a", "b")] == [1 / 2, 1]
    assert found["none_positive"] == 1
    assert found["calibration_by_source"] == {"a": pytest.approx(1.5 / 4), "b": pytest.approx(1.5 / 4)}
    assert found["calibration_error"][0] == pytest.approx((abs(1 - 0.75 + 0 - 0.75) + 0 + abs(0 - 0.5)) / 4)


def test_a_credit_that_is_as_often_right_as_it_says_is_not_off() -> None:
    """Credited 0.25 of four images, one of them its own, a source is paid what it is due; the others are not."""
    weights = torch.tensor([[0.25] * 4, [0.75] * 4, [0.0] * 4])
    assert classwise_errors(weights, torch.tensor([0, 1, 1, 2])) == [0.0, 0.25, 0.25]


def test_where_nothing_is_positive_shares_are_equal() -> None:
    assert shares(VALUE, POSITIVE)[:, 3].tolist() == [0.5, 0.5]
    assert shares(VALUE, POSITIVE)[:, :3].equal(POSITIVE[:, :3])


def confident(n: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    first = torch.rand(n, generator=g, dtype=torch.float64)
    weights, true = torch.stack([first, 1 - first]), torch.rand(n, generator=g, dtype=torch.float64) < 0.3
    return [weights[:, true], weights[:, ~true]]


def test_the_interval_is_that_of_new_images() -> None:
    """Oracle: the deviation of the error over many sets of images of the same kind."""
    found = calibration_interval(confident(200, 0), 0)
    assert found[0] == calibration_error(confident(200, 0))
    fresh = torch.tensor([calibration_error(confident(200, seed)) for seed in range(300)])
    assert found[2] - found[0] == pytest.approx(1.96 * float(fresh.std()), rel=0.25)
    assert found[1] == pytest.approx(2 * found[0] - found[2])


def test_no_error_is_below_zero() -> None:
    sure = [torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0], [1.0]])]
    assert calibration_interval(sure, 0) == [0, 0, 0]


def test_the_table_names_every_source() -> None:
    row = scores(VALUE, POSITIVE, ["a", "b"], [2, 2], 0) | {"images": 4, "evaluations": 0.0, "seconds": 0.5}
    head, _, line = table({"shapley": row}).splitlines()
    assert head == "| method | images | accuracy | calibration error | a | b | evaluations | s/image |"
    assert line.startswith("| `shapley` | 4 | 75.0 % [30.1, 95.4] | 0.25")
    assert line.endswith("| 50 %, 0.375 | 100 %, 0.375 | 0 | 0.50 |")
