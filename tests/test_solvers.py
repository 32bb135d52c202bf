"""Steps of the samplers. Oracles: the papers' and k-diffusion's formulas, exact solutions, laws of linear chains."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdm_lightning.sampling import Method, karras_sigmas, sample
from cdm_lightning.solvers import Multistep, ancestral_step

SHAPE = (3, 1, 1)
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64).reshape(1, *SHAPE)
VARIANCE = torch.tensor([2.0, 0.25, 0.01], dtype=torch.float64).reshape(1, *SHAPE)

Denoise = Callable[[Tensor, Tensor], Tensor]


def draw(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the ideal denoiser of N(MEAN, diag VARIANCE)."""
    return MEAN + VARIANCE / (VARIANCE + sigma.reshape(-1, 1, 1, 1).square()) * (x - MEAN)


def bent(x: Tensor, sigma: Tensor) -> Tensor:
    """Return something that is not linear in x."""
    return torch.tanh(x) / (1 + sigma.reshape(-1, 1, 1, 1))


def dpm_solver_pp_2m(denoise: Denoise, noise: Tensor, grid: Tensor) -> Tensor:
    """Lu et al. 2022, Algorithm 2, as written: variance preserving (alpha^2 + sigma^2 = 1), in lambda."""
    lambdas = [-math.log(level) for level in grid.tolist()]
    alpha = [math.sqrt(1 / (1 + math.exp(-2 * value))) for value in lambdas]
    sigma = [math.sqrt(1 / (1 + math.exp(2 * value))) for value in lambdas]
    h = [0.0] + [after - before for before, after in zip(lambdas, lambdas[1:], strict=False)]
    buffer: list[Tensor] = []
    x = alpha[0] * noise * float(grid[0])
    for i in range(1, len(grid)):
        buffer.append(denoise(x / alpha[i - 1], grid[i - 1].expand(len(x))))
        d = buffer[-1]
        if i > 1:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h[i]) - 1) * d
    return x / alpha[-1]


def k_diffusion_2m(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """`sample_dpmpp_2m` of k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py)."""
    x, old_denoised = noise * sigmas[0], None
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i].expand(len(x)))
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        if old_denoised is None or sigmas[i + 1] == 0:
            x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * denoised
        else:
            r = (t + sigmas[i - 1].log()) / h
            denoised_d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old_denoised
            x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * denoised_d
        old_denoised = denoised
    return x


@pytest.mark.parametrize("denoise", [gaussian, bent])
@pytest.mark.parametrize("steps", [3, 9, 40])
def test_dpmpp_2m_is_the_papers_algorithm_and_k_diffusions(denoise: Denoise, steps: int) -> None:
    noise, grid = draw(6), karras_sigmas(steps, through=1.0)
    above_zero = sample(denoise, noise, grid[:-1], method="dpmpp_2m")
    torch.testing.assert_close(above_zero, dpm_solver_pp_2m(denoise, noise, grid[:-1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(above_zero, k_diffusion_2m(denoise, noise, grid[:-1]), rtol=0, atol=1e-12)
    x_0 = sample(denoise, noise, grid, method="dpmpp_2m")
    torch.testing.assert_close(x_0, k_diffusion_2m(denoise, noise, grid), rtol=0, atol=1e-12)


def test_without_history_dpmpp_2m_is_eulers_method_of_first_order() -> None:
    noise, errors = draw(6), []
    for steps in (128, 256, 512, 1024):
        grid = karras_sigmas(steps)[:-1]
        x = euler = noise * 80.0
        for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
            x = Multistep().step(gaussian, x, sigma, sigma_next)
            euler = euler + (sigma_next - sigma) * (euler - gaussian(euler, sigma[None])) / sigma
        torch.testing.assert_close(x, euler, rtol=0, atol=1e-11)
        shrunk = ((grid[-1] ** 2 + VARIANCE) / (80.0**2 + VARIANCE)).sqrt()
        errors.append(float((x - MEAN - (noise * 80.0 - MEAN) * shrunk).square().mean().sqrt()))
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(0.9 < slope < 1.1 for slope in slopes), slopes


@pytest.mark.parametrize("method", ["heun", "dpmpp_2m"])
def test_a_constant_denoiser_is_followed_exactly(method: Method) -> None:
    noise, constant, grid = draw(6), draw(6, seed=1), karras_sigmas(7)
    x = sample(lambda *_: constant, noise, grid[:-1], method=method)
    expected = constant + (noise * 80.0 - constant) * float(grid[-2]) / 80.0
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["dpmpp_2m", "ancestral"])
def test_the_last_step_returns_what_is_denoised_and_draws_nothing(method: Method) -> None:
    generator, seen = torch.Generator().manual_seed(0), []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((gaussian(x, sigma), generator.get_state()))
        return seen[-1][0]

    x_0 = sample(denoise, draw(6), karras_sigmas(7), method=method, generator=generator)
    assert torch.equal(x_0, seen[-1][0])
    assert torch.equal(generator.get_state(), seen[-1][1])


@pytest.mark.parametrize("jump", [1.0, 1.2])
def test_dpmpp_2m_starts_anew_at_a_jump(jump: float) -> None:
    """A trajectory with a jump is two trajectories, one after the other; 1.2 is between two levels."""
    noise, grid = draw(6), karras_sigmas(9, through=1.0)
    k = int((grid > jump).sum())
    current = gaussian

    def on_step(_: Tensor, sigma: Tensor) -> None:
        nonlocal current
        current = bent if float(sigma[0]) <= jump else gaussian

    def changing(x: Tensor, sigma: Tensor) -> Tensor:
        return current(x, sigma)

    def run(jump: float) -> Tensor:
        return sample(changing, noise, grid, method="dpmpp_2m", on_step=on_step, jump=jump)

    there = sample(gaussian, noise, grid[: k + 1], method="dpmpp_2m")
    expected = sample(bent, there / grid[k], grid[k:], method="dpmpp_2m")
    torch.testing.assert_close(run(jump), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(run(math.inf), expected, atol=0.05)


@pytest.mark.parametrize("levels", [(80.0, 40.0), (1.0, 0.9), (0.5, 0.01)])
def test_an_ancestral_step_is_k_diffusions(levels: tuple[float, float]) -> None:
    """`get_ancestral_step` and `sample_euler_ancestral` of k-diffusion, with eta = 1."""
    before, after = levels
    x, sigma = draw(6) * before, torch.tensor(levels, dtype=torch.float64)
    up = min(after, (after**2 * (before**2 - after**2) / before**2) ** 0.5)
    down = (after**2 - up**2) ** 0.5
    noise = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(4)).double()
    expected = x + (x - bent(x, sigma[:1])) / before * (down - before) + noise * up
    moved = ancestral_step(bent, x, *sigma, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [(80.0, 40.0), (1.0, 0.9), (0.5, 0.01)])
def test_ancestral_noise_fills_up_what_the_way_down_left(levels: tuple[float, float]) -> None:
    """Where all data is one point, x has deviation sigma around it; so it has sigma_next after the step."""
    n, (before, after) = 20000, levels
    sigma = torch.tensor(levels, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    point = MEAN.expand(n, *SHAPE)

    def deviation(start: Tensor) -> Tensor:
        return (ancestral_step(lambda *_: point, start, *sigma, generator=generator) - MEAN).square().mean().sqrt()

    error = 4 / math.sqrt(2 * 3 * n)
    assert float(deviation(point + before * draw(n))) == pytest.approx(after, rel=error)
    up = math.sqrt(after**2 - (after**2 / before) ** 2)
    assert float(deviation(point)) == pytest.approx(up, rel=error), "from the point itself there is only noise"


def ancestral_variance(steps: int) -> Tensor:
    """Return the variance of x_0, [3], of a chain in which everything is linear and Gaussian."""
    grid, variance = karras_sigmas(steps), torch.full((3,), 80.0**2, dtype=torch.float64)
    for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
        share = (sigma_next / sigma) ** 2
        slope = share + (1 - share) * VARIANCE.flatten() / (VARIANCE.flatten() + sigma**2)
        variance = slope**2 * variance + sigma_next**2 * (1 - share)
    return variance


@pytest.mark.parametrize("steps", [10, 1000])
def test_ancestral_samples_have_the_mean_and_the_covariance_of_their_chain(steps: int) -> None:
    n, generator = 4096, torch.Generator().manual_seed(6)
    x_0 = sample(gaussian, draw(n), karras_sigmas(steps), method="ancestral", generator=generator)
    variance = ancestral_variance(steps)
    scaled = ((x_0 - MEAN).flatten(1)) / variance.sqrt()
    assert float(scaled.mean(0).abs().max()) < 4 / math.sqrt(n)
    covariance = scaled.T @ scaled / n
    assert float((covariance - torch.eye(3)).abs().max()) < 4 * math.sqrt(2 / n)


def test_the_ancestral_chain_comes_to_the_law_of_the_data() -> None:
    errors = [(ancestral_variance(steps) / VARIANCE.flatten() - 1).abs() for steps in (10, 1000, 2000)]
    assert (errors[0] > 0.25).any()
    assert (errors[1] < 0.025).all()
    torch.testing.assert_close(errors[1] / errors[2], torch.full((3,), 2.0).double(), rtol=0.05, atol=0)
