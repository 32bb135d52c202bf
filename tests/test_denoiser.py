"""Preconditioning. Oracles: Karras et al. 2022, Table 1, unit variances, and networks whose output is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdm_lightning.denoiser import (
    EDM,
    PRECONDITIONINGS,
    SIGMA_DATA,
    SIGMA_MAX,
    SIGMA_MIN,
    VP,
    Preconditioning,
    PreconditioningName,
    denoise,
    guided_denoise,
    linear_time,
    scaled_linear_time,
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


def table_1_edm(sigma: float) -> tuple[float, float, float]:
    """Return c_skip, c_out and c_in."""
    return 0.5**2 / (sigma**2 + 0.5**2), sigma * 0.5 / math.sqrt(0.5**2 + sigma**2), 1 / math.sqrt(sigma**2 + 0.5**2)


def table_1_vp(sigma: float) -> tuple[float, float, float]:
    """Return c_skip, c_out and c_in."""
    return 1.0, -sigma, 1 / math.sqrt(sigma**2 + 1)


@pytest.mark.parametrize(
    ("name", "table_1"), [("edm", table_1_edm), ("vp", table_1_vp), ("vp_scaled_linear", table_1_vp)]
)
def test_coefficients_are_those_of_table_1(
    name: PreconditioningName, table_1: Callable[[float], tuple[float, float, float]]
) -> None:
    x, output, preconditioning = numbers(0), numbers(1), PRECONDITIONINGS[name]
    network = Fixed(output)
    denoised = denoise(preconditioning, network, x, SIGMA)
    for k, sigma in enumerate(SIGMA.tolist()):
        c_skip, c_out, c_in = table_1(sigma)
        torch.testing.assert_close(network.x[k], c_in * x[k], rtol=1e-14, atol=0)
        torch.testing.assert_close(denoised[k], c_skip * x[k] + c_out * output[k], rtol=1e-13, atol=1e-14)
        assert float(preconditioning.c_out(SIGMA)[k]) == pytest.approx(c_out, rel=1e-14)
    torch.testing.assert_close(network.time, preconditioning.c_noise(SIGMA), rtol=0, atol=0)
    assert network.guide is None
    assert network.prompt is None


def test_edm_input_and_target_have_unit_variance() -> None:
    """The reason for the coefficients (Karras et al. 2022, eq. 114 and 115)."""
    zero = torch.zeros(len(SIGMA), *SHAPE, dtype=torch.float64)
    network = Fixed(zero)
    c_skip = denoise(EDM(), network, zero + 1, SIGMA)[:, 0, 0, 0]
    c_in, c_out = network.x[:, 0, 0, 0], EDM().c_out(SIGMA)
    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(c_in**2 * (SIGMA_DATA**2 + SIGMA**2), one)
    torch.testing.assert_close(((1 - c_skip) ** 2 * SIGMA_DATA**2 + c_skip**2 * SIGMA**2) / c_out**2, one)


def edm_sigma(time: Tensor) -> Tensor:
    """Return the noise level that EDM's time stands for."""
    return 0.002 * (time / 1000 * math.log(80 / 0.002)).exp()


def vp_sigma(time: Tensor) -> Tensor:
    """Return the noise level at a time of the linear schedule (Karras et al. 2022, Table 1, VP: schedule)."""
    t = time / 999
    return (0.5 * 19.9 * t**2 + 0.1 * t).expm1().sqrt()


def discrete_sigmas(betas: list[float]) -> list[float]:
    """Return the noise level after each step of a discrete VP process, step by step (Ho et al. 2020)."""
    levels, signal = [], 1.0
    for beta in betas:
        signal *= 1 - beta
        levels.append(math.sqrt((1 - signal) / signal))
    return levels


def scaled_linear_levels() -> list[float]:
    """Return the 1000 levels of latent diffusion, whose betas have roots in equal steps from 0.00085 to 0.012."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return discrete_sigmas([(low + (high - low) * k / 999) ** 2 for k in range(1000)])


def scaled_linear_sigma(time: Tensor) -> Tensor:
    """Return the noise level at whole times of the scaled-linear schedule."""
    assert (time - time.round()).abs().max() < 1e-8
    return torch.tensor(scaled_linear_levels(), dtype=torch.float64)[time.round().long()]


def test_edm_time_runs_from_0_to_1000_in_log_sigma() -> None:
    middle = math.sqrt(SIGMA_MIN * SIGMA_MAX)
    time = EDM().c_noise(torch.tensor([SIGMA_MIN, middle, SIGMA_MAX], dtype=torch.float64))
    torch.testing.assert_close(time, torch.tensor([0.0, 500.0, 1000.0], dtype=torch.float64), rtol=0, atol=1e-10)


def test_linear_time_is_the_inverse_of_the_schedule() -> None:
    time = torch.linspace(0, 999, 334, dtype=torch.float64)
    torch.testing.assert_close(linear_time(vp_sigma(time)), time, rtol=0, atol=1e-9)
    single_precision = linear_time(vp_sigma(time).float())
    torch.testing.assert_close(single_precision.double(), time, rtol=1e-5, atol=1e-3)


def test_linear_time_is_near_the_steps_of_ddpm() -> None:
    """The discrete process has beta from 1e-4 to 0.02 in 1000 steps; step k ends at (k + 1) / 1000."""
    levels = discrete_sigmas([1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)])
    ends = 999 / 1000 * torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_time(torch.tensor(levels, dtype=torch.float64)), ends, rtol=0, atol=4)


def test_scaled_linear_time_is_the_place_in_the_table_and_constant_beyond_it() -> None:
    levels = torch.tensor(scaled_linear_levels(), dtype=torch.float64)
    times = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(scaled_linear_time(levels), times, rtol=0, atol=1e-8)
    between = (levels[:-1] * levels[1:]).sqrt()
    torch.testing.assert_close(scaled_linear_time(between), times[:-1] + 0.5, rtol=0, atol=1e-8)
    assert scaled_linear_time(torch.tensor([0.002, 0.029, 14.7, 80.0])).tolist() == [0, 0, 999, 999]


def gaussian_source() -> Gaussians:
    images = 0.3 + 0.4 * torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Gaussians.fit(images, seed=0, rank=6)


LEVELS = {  # what a network knows of the noise level, and levels to try
    "edm": (edm_sigma, SIGMA),
    "vp": (vp_sigma, SIGMA),
    "vp_scaled_linear": (
        scaled_linear_sigma,
        torch.tensor([scaled_linear_levels()[k] for k in (0, 1, 300, 800, 999)], dtype=torch.float64),
    ),
}


def column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


class Ideal:
    """The F of a Gaussian source: it sees only scaled input and time, and solves Table 1 for the ideal denoiser."""

    def __init__(self, name: str) -> None:
        self.level = LEVELS[name][0]
        self.table_1 = table_1_edm if name == "edm" else table_1_vp

    def __call__(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        sigma = self.level(time)
        c_skip, c_out, c_in = torch.tensor([self.table_1(s) for s in sigma.tolist()], dtype=torch.float64).unbind(1)
        noised = x / column(c_in)
        ideal = gaussian_source().denoise(noised, sigma)
        if guide is not None:
            return (ideal - guide[:, : SHAPE[0]]) / column(draft_error(sigma))
        return (ideal - column(c_skip) * noised) / column(c_out)


def draft_error(sigma: Tensor) -> Tensor:
    return 0.4 * sigma / (1 + sigma)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_the_ideal_network_of_a_gaussian_gives_its_ideal_denoiser(name: PreconditioningName) -> None:
    sigma = LEVELS[name][1]
    x = 0.3 + column(sigma) * numbers(3)
    expected = gaussian_source().denoise(x, sigma)
    found = denoise(PRECONDITIONINGS[name], Ideal(name), x, sigma)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_the_ideal_guided_network_of_a_gaussian_gives_its_ideal_denoiser(name: PreconditioningName) -> None:
    """Whatever the draft is."""
    sigma = LEVELS[name][1]
    x, draft = 0.3 + column(sigma) * numbers(3), numbers(8)
    expected = gaussian_source().denoise(x, sigma)
    found = guided_denoise(PRECONDITIONINGS[name], Ideal(name), x, sigma, draft, draft_error(sigma))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("preconditioning", [VP(linear_time), VP(scaled_linear_time)])
def test_the_noise_is_what_a_vp_network_predicts(preconditioning: Preconditioning) -> None:
    """A network that knows the noise gives the clean image; its error of unit size is one of sigma."""
    x_0, noise = numbers(4), numbers(6)
    x = x_0 + column(SIGMA) * noise
    torch.testing.assert_close(denoise(preconditioning, Fixed(noise), x, SIGMA), x_0, rtol=0, atol=1e-13)
    wrong = denoise(preconditioning, Fixed(noise + 1), x, SIGMA)
    scaled = (wrong - x_0) / column(preconditioning.c_out(SIGMA))
    torch.testing.assert_close(scaled, torch.ones_like(x_0), rtol=1e-10, atol=0)


def test_guided_network_that_knows_the_error_returns_the_clean_image() -> None:
    x_0, draft, error = numbers(4), numbers(5), torch.tensor([0.001, 0.02, 0.1, 0.3, 0.4], dtype=torch.float64)
    x = x_0 + column(SIGMA) * numbers(6)
    network = Fixed((x_0 - draft) / column(error))
    torch.testing.assert_close(guided_denoise(EDM(), network, x, SIGMA, draft, error), x_0, rtol=0, atol=1e-13)


def test_guided_network_of_zeros_returns_the_draft() -> None:
    x, draft = numbers(4), numbers(5)
    denoised = guided_denoise(EDM(), Fixed(torch.zeros_like(x)), x, SIGMA, draft, torch.ones_like(SIGMA))
    assert torch.equal(denoised, draft)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_guide_is_the_draft_and_its_residual_in_units_of_the_noise(name: PreconditioningName) -> None:
    draft, noise, preconditioning = numbers(5), numbers(6), PRECONDITIONINGS[name]
    network = Fixed(torch.zeros_like(draft))
    x = draft + column(SIGMA) * noise  # where the draft is right, the residual is the noise
    guided_denoise(preconditioning, network, x, SIGMA, draft, torch.ones_like(SIGMA))
    assert network.guide is not None
    assert network.guide.shape == (5, 4, 3, 3)
    assert torch.equal(network.guide[:, :2], draft)
    torch.testing.assert_close(network.guide[:, 2:], noise, rtol=0, atol=1e-11)
    variance = 0.25 if name == "edm" else 1.0
    torch.testing.assert_close(network.x, x / column(SIGMA**2 + variance).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(network.time, preconditioning.c_noise(SIGMA), rtol=0, atol=0)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_network_of_low_precision_leaves_the_denoiser_in_single(low: torch.dtype, name: PreconditioningName) -> None:
    x, draft, sigma, preconditioning = numbers(0).float(), numbers(1).float(), SIGMA.float(), PRECONDITIONINGS[name]
    output, error = numbers(2).to(low), torch.full_like(sigma, 1e-3)
    assert denoise(preconditioning, Fixed(output), x, sigma).dtype == torch.float32
    denoised = guided_denoise(preconditioning, Fixed(output), x, sigma, draft, error)
    assert torch.equal(denoised, draft + 1e-3 * output.float()), "the draft is never rounded"


def test_score_is_the_gradient_of_the_log_density() -> None:
    source = gaussian_source()
    x = (0.3 + column(SIGMA) * numbers(7)).requires_grad_()
    (gradient,) = torch.autograd.grad(source.log_density(x, SIGMA).sum(), x)
    torch.testing.assert_close(score(x, source.denoise(x, SIGMA), SIGMA), gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, math.inf])
def test_single_is_the_level_as_a_float32_tensor_holds_it(sigma: float) -> None:
    assert single(sigma) == float(torch.full((1,), sigma)[0])
    assert single(single(sigma)) == single(sigma)
