"""Preconditioning. Oracles: Karras et al. 2022, Table 1, unit variances, and networks whose output is known."""

import math

import pytest
import torch
from torch import Tensor

from cdm_lightning.denoiser import (
    SIGMA_DATA,
    SIGMA_MAX,
    SIGMA_MIN,
    edm_denoise,
    edm_scale,
    guided_denoise,
    network_time,
    score,
    single,
)
from cdm_lightning.gaussians import Gaussians

SHAPE = (2, 3, 3)
SIGMA = torch.tensor([0.002, 0.03, 0.5, 2.0, 80.0], dtype=torch.float64)


def numbers(seed: int) -> Tensor:
    return torch.randn(len(SIGMA), *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed:
    """A network that returns `output` and keeps what it was given."""

    def __init__(self, output: Tensor) -> None:
        self.output = output

    def __call__(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        self.x, self.time, self.guide, self.prompt = x, time, guide, prompt
        return self.output


def test_edm_coefficients_are_those_of_table_1() -> None:
    x, output = numbers(0), numbers(1)
    network = Fixed(output)
    denoised = edm_denoise(network, x, SIGMA)
    for k, sigma in enumerate(SIGMA.tolist()):
        c_skip = 0.5**2 / (sigma**2 + 0.5**2)
        c_out = sigma * 0.5 / math.sqrt(0.5**2 + sigma**2)
        c_in = 1 / math.sqrt(sigma**2 + 0.5**2)
        torch.testing.assert_close(network.x[k], c_in * x[k], rtol=1e-14, atol=0)
        torch.testing.assert_close(denoised[k], c_skip * x[k] + c_out * output[k], rtol=1e-13, atol=1e-15)
        assert float(edm_scale(SIGMA)[k]) == pytest.approx(c_out, rel=1e-14)
    assert network.guide is None
    assert network.prompt is None


def test_edm_input_and_target_have_unit_variance() -> None:
    """The reason for the coefficients (Karras et al. 2022, eq. 114 and 115)."""
    zero = torch.zeros(len(SIGMA), *SHAPE, dtype=torch.float64)
    network = Fixed(zero)
    c_skip = edm_denoise(network, zero + 1, SIGMA)[:, 0, 0, 0]
    c_in, c_out = network.x[:, 0, 0, 0], edm_scale(SIGMA)
    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(c_in**2 * (SIGMA_DATA**2 + SIGMA**2), one)
    torch.testing.assert_close(((1 - c_skip) ** 2 * SIGMA_DATA**2 + c_skip**2 * SIGMA**2) / c_out**2, one)


def test_time_runs_from_0_to_1000_in_log_sigma() -> None:
    middle = math.sqrt(SIGMA_MIN * SIGMA_MAX)
    time = network_time(torch.tensor([SIGMA_MIN, middle, SIGMA_MAX], dtype=torch.float64))
    torch.testing.assert_close(time, torch.tensor([0.0, 500.0, 1000.0], dtype=torch.float64), rtol=0, atol=1e-10)


def gaussian_source() -> Gaussians:
    images = 0.3 + 0.4 * torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Gaussians.fit(images, seed=0, rank=6)


class Ideal:
    """The F of a Gaussian source: it sees only scaled input and time, and solves Table 1 for the ideal denoiser."""

    def __call__(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        sigma = 0.002 * (time / 1000 * math.log(80 / 0.002)).exp()
        total = (sigma**2 + 0.25).reshape(-1, 1, 1, 1)
        noised = x * total.sqrt()
        ideal = gaussian_source().denoise(noised, sigma)
        return (ideal - 0.25 / total * noised) / (sigma.reshape(-1, 1, 1, 1) * 0.5 / total.sqrt())


def test_ideal_network_of_a_gaussian_gives_its_ideal_denoiser() -> None:
    x = 0.3 + SIGMA.reshape(-1, 1, 1, 1) * numbers(3)
    expected = gaussian_source().denoise(x, SIGMA)
    torch.testing.assert_close(edm_denoise(Ideal(), x, SIGMA), expected, rtol=0, atol=1e-9)


def test_guided_network_that_knows_the_error_returns_the_clean_image() -> None:
    x_0, draft, error = numbers(4), numbers(5), torch.tensor([0.001, 0.02, 0.1, 0.3, 0.4], dtype=torch.float64)
    x = x_0 + SIGMA.reshape(-1, 1, 1, 1) * numbers(6)
    network = Fixed((x_0 - draft) / error.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(guided_denoise(network, x, SIGMA, draft, error), x_0, rtol=0, atol=1e-13)


def test_guided_network_of_zeros_returns_the_draft() -> None:
    x, draft = numbers(4), numbers(5)
    denoised = guided_denoise(Fixed(torch.zeros_like(x)), x, SIGMA, draft, torch.ones_like(SIGMA))
    assert torch.equal(denoised, draft)


def test_guide_is_the_draft_and_its_residual_in_units_of_the_noise() -> None:
    draft, noise = numbers(5), numbers(6)
    network, prompt = Fixed(torch.zeros_like(draft)), torch.ones(5, 1, 1, 1)
    x = draft + SIGMA.reshape(-1, 1, 1, 1) * noise  # where the draft is right, the residual is the noise
    guided_denoise(network, x, SIGMA, draft, torch.ones_like(SIGMA), prompt=prompt)
    assert network.guide is not None
    assert network.guide.shape == (5, 4, 3, 3)
    assert torch.equal(network.guide[:, :2], draft)
    torch.testing.assert_close(network.guide[:, 2:], noise, rtol=0, atol=1e-11)
    torch.testing.assert_close(network.x, x / (SIGMA**2 + 0.25).sqrt().reshape(-1, 1, 1, 1), rtol=1e-14, atol=0)
    torch.testing.assert_close(network.time, network_time(SIGMA), rtol=0, atol=0)
    assert network.prompt is prompt


def test_prompt_reaches_the_unguided_network() -> None:
    network, prompt = Fixed(numbers(1)), torch.ones(5, 1, 1, 1)
    edm_denoise(network, numbers(0), SIGMA, prompt=prompt)
    assert network.prompt is prompt


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_network_of_low_precision_leaves_the_denoiser_in_single(low: torch.dtype) -> None:
    x, draft, sigma = numbers(0).float(), numbers(1).float(), SIGMA.float()
    output = numbers(2).to(low)
    for denoised in (
        edm_denoise(Fixed(output), x, sigma),
        guided_denoise(Fixed(output), x, sigma, draft, torch.full_like(sigma, 1e-3)),
    ):
        assert denoised.dtype == torch.float32
    exact = draft + 1e-3 * output.float()  # the draft is never rounded
    assert torch.equal(guided_denoise(Fixed(output), x, sigma, draft, torch.full_like(sigma, 1e-3)), exact)


def test_score_is_the_gradient_of_the_log_density() -> None:
    source = gaussian_source()
    x = (0.3 + SIGMA.reshape(-1, 1, 1, 1) * numbers(7)).requires_grad_()
    (gradient,) = torch.autograd.grad(source.log_density(x, SIGMA).sum(), x)
    torch.testing.assert_close(score(x, source.denoise(x, SIGMA), SIGMA), gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, math.inf])
def test_single_is_the_level_as_a_float32_tensor_holds_it(sigma: float) -> None:
    assert single(sigma) == float(torch.full((1,), sigma)[0])
    assert single(single(sigma)) == single(sigma)
