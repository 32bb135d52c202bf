"""Evidence. Oracles: the closed form's own density, and numpy's interpolation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.interpolation import interpolate

SWITCH = 1.0
CALIBRATION = Calibration(torch.tensor([0.1, 0.2, 0.8]), torch.tensor([9.0, 4.0, 2.0]), 0.15)


def noised(sigma: list[float]) -> tuple[Gaussians, Tensor, Tensor]:
    images = torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Gaussians.fit(images, seed=0, rank=4), images[: len(sigma)], torch.tensor(sigma, dtype=torch.float64)


def rising(minimum: float, maximum: float) -> st.SearchStrategy[list[float]]:
    steps = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8)
    return st.tuples(st.floats(minimum, maximum), steps).map(lambda start: np.cumsum([start[0], *start[1]]).tolist())


@given(rising(-5, 5), st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.data())
@settings(deadline=None, derandomize=True)
def test_interpolate_is_numpys(grid: list[float], at: list[float], data: st.DataObject) -> None:
    row = st.lists(st.floats(-10, 10), min_size=len(grid), max_size=len(grid))
    table = data.draw(st.lists(row, min_size=1, max_size=3))
    ours = interpolate(*(torch.tensor(part, dtype=torch.float64) for part in (at, grid, table)))
    expected = np.stack([np.interp(at, grid, values) for values in table])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_interpolate_is_exact_on_the_grid_and_constant_beyond_its_ends() -> None:
    grid, table = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[3.0, -1.0, 7.0]])
    at = torch.tensor([-100.0, 1.0, 2.0, 4.0, 100.0])
    assert interpolate(at, grid, table).tolist() == [[3.0, 3.0, -1.0, 7.0, 7.0]]
    assert interpolate(at, grid, table[0]).tolist() == [3.0, 3.0, -1.0, 7.0, 7.0]


def test_a_table_of_one_level_is_constant() -> None:
    at = torch.tensor([0.0, 1.0, 9.0])
    assert interpolate(at, torch.ones(1), torch.tensor([[2.0], [3.0]])).tolist() == [[2.0] * 3, [3.0] * 3]


def test_evidence_above_the_switch_is_the_density_itself() -> None:
    gaussians, x, sigma = noised([1.0, 1.0001, 3.0, 80.0])
    evidence = GaussianEvidence(gaussians, CALIBRATION, SWITCH).log_density(x, sigma)
    torch.testing.assert_close(evidence, gaussians.log_density(x, sigma), rtol=0, atol=0)


def test_evidence_below_the_switch_is_divided_by_the_temperature_at_its_level() -> None:
    gaussians, x, sigma = noised([0.2, 0.4, 0.8])
    evidence = GaussianEvidence(gaussians, CALIBRATION, SWITCH).log_density(x, sigma)
    temperature = torch.tensor([4.0, 3.0, 2.0], dtype=torch.float64)  # 0.4 is midway in log sigma
    torch.testing.assert_close(evidence, gaussians.log_density(x, sigma) / temperature, rtol=1e-6, atol=0)


def test_evidence_below_the_floor_is_that_of_the_floor() -> None:
    gaussians, x, sigma = noised([0.002, 0.1, 0.1499, 0.15])
    evidence = GaussianEvidence(gaussians, CALIBRATION, SWITCH).log_density(x, sigma)
    at_floor = GaussianEvidence(gaussians, CALIBRATION, SWITCH).log_density(x, torch.full_like(sigma, 0.15))
    torch.testing.assert_close(evidence, at_floor, rtol=1e-12, atol=0)


def test_a_floor_above_the_switch_is_not_felt_above_the_switch() -> None:
    gaussians, x, sigma = noised([1.0, 1.2, 3.0])
    calibration = Calibration(CALIBRATION.sigma, CALIBRATION.temperature, 2.0)
    evidence = GaussianEvidence(gaussians, calibration, SWITCH).log_density(x, sigma)
    torch.testing.assert_close(evidence, gaussians.log_density(x, sigma), rtol=0, atol=0)


def test_every_image_of_a_batch_is_above_or_below_by_itself() -> None:
    gaussians, x, sigma = noised([0.05, 5.0, 0.5, 1.0])
    evidence = GaussianEvidence(gaussians, CALIBRATION, SWITCH)
    one_by_one = [evidence.log_density(x[k : k + 1], sigma[k : k + 1]) for k in range(4)]
    torch.testing.assert_close(evidence.log_density(x, sigma), torch.cat(one_by_one), rtol=1e-12, atol=0)


def test_without_calibration_and_below_an_endless_switch_nothing_changes() -> None:
    gaussians, x, sigma = noised([0.002, 0.5, 80.0])
    evidence = GaussianEvidence(gaussians, Calibration.none(), float("inf")).log_density(x, sigma)
    torch.testing.assert_close(evidence, gaussians.log_density(x, sigma), rtol=0, atol=0)


def test_evidence_that_is_blind_to_the_class_refuses_a_label() -> None:
    gaussians, x, sigma = noised([0.5, 2.0])
    with pytest.raises(BadInput, match="class-blind.*take the evidence of the class"):
        GaussianEvidence(gaussians, CALIBRATION, SWITCH).log_density(x, sigma, torch.tensor([3, 4]))


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.15, 0.3, 0.8])
def test_temperature_is_linear_in_log_sigma_above_the_floor(sigma: float) -> None:
    level = max(sigma, CALIBRATION.floor)
    expected = np.interp(np.log(level), np.log([0.1, 0.2, 0.8]), [9.0, 4.0, 2.0])
    assert float(CALIBRATION.temperature_at(torch.tensor([sigma]))) == pytest.approx(expected, rel=1e-6)


def test_above_the_levels_that_were_fitted_evidence_is_the_density_itself() -> None:
    gaussians, x, sigma = noised([0.81, 7.0, 80.0])
    assert CALIBRATION.temperature_at(sigma).tolist() == [1.0] * 3
    evidence = GaussianEvidence(gaussians, CALIBRATION, float("inf")).log_density(x, sigma)
    torch.testing.assert_close(evidence, gaussians.log_density(x, sigma), rtol=0, atol=0)
