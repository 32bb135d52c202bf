"""The noise law and the loss. Oracles: the quantiles of the cut log-normal law, and a loop."""

import math

import pytest
import torch

from cdm_lightning.loss import denoising_loss, draw_sigma, noise_quartile

RANGES = [(0.002, 80.0), (0.002, 1.0), (0.5, 0.6), (5.0, 80.0)]


def normal_cdf(log_sigma: float) -> float:
    return 0.5 * (1 + math.erf((log_sigma + 1.2) / 1.2 / math.sqrt(2)))


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_noise_levels_follow_the_cut_log_normal_law(low: float, high: float) -> None:
    """Kolmogorov-Smirnov distance of 5,000 draws, below its 1 % quantile."""
    n = 5000
    drawn = draw_sigma(n, low, high, torch.Generator().manual_seed(0)).sort().values.tolist()
    first, last = normal_cdf(math.log(low)), normal_cdf(math.log(high))
    law = [(normal_cdf(math.log(sigma)) - first) / (last - first) for sigma in drawn]
    distance = max(max((k + 1) / n - p, p - k / n) for k, p in enumerate(law))
    assert distance < 1.63 / math.sqrt(n)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_noise_levels_stay_in_their_range(low: float, high: float) -> None:
    sigma = draw_sigma(20000, low, high, torch.Generator().manual_seed(1))
    assert sigma.dtype == torch.float32
    assert float(sigma.min()) >= low * (1 - 1e-6)
    assert float(sigma.max()) <= high * (1 + 1e-6)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_quartiles_of_the_noise_cut_the_law_into_quarters(low: float, high: float) -> None:
    """Oracle: the law's own distribution function."""
    sigma = draw_sigma(400, low, high, torch.Generator().manual_seed(5))
    first, last = normal_cdf(math.log(low)), normal_cdf(math.log(high))
    shares = [(normal_cdf(math.log(level)) - first) / (last - first) for level in sigma.tolist()]
    assert noise_quartile(sigma, low, high).tolist() == [min(int(4 * share), 3) for share in shares]


def test_median_is_that_of_the_paper() -> None:
    """P_mean is -1.2 and P_std 1.2 (Karras et al. 2022, Table 1)."""
    log_sigma = draw_sigma(40000, 1e-6, 1e6, torch.Generator().manual_seed(2)).double().log()
    assert abs(float(log_sigma.mean()) + 1.2) < 4 * 1.2 / math.sqrt(40000)
    assert abs(float(log_sigma.std()) - 1.2) < 4 * 1.2 / math.sqrt(2 * 40000)


def test_noise_levels_are_a_function_of_the_generator() -> None:
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(draw_sigma(8, 0.002, 80.0, torch.Generator().manual_seed(3)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], draw_sigma(8, 0.002, 80.0, torch.Generator().manual_seed(4)))


def test_loss_is_the_mean_square_error_in_units_of_the_scale() -> None:
    g = torch.Generator().manual_seed(0)
    denoised, x_0 = torch.randn(2, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    scale = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    expected = []
    for k in range(3):
        squares = [(float(a) - float(b)) ** 2 for a, b in zip(denoised[k].flatten(), x_0[k].flatten(), strict=True)]
        expected.append(sum(squares) / len(squares) / float(scale[k]) ** 2)
    loss = denoising_loss(denoised, x_0, scale)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


def test_loss_of_an_error_as_large_as_the_scale_is_one() -> None:
    x_0, scale = torch.zeros(2, 1, 5, 5), torch.tensor([0.25, 4.0])
    assert denoising_loss(x_0 + scale[:, None, None, None], x_0, scale).tolist() == [1.0, 1.0]
