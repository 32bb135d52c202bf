"""Samplers. Oracles: the known solution for a Gaussian source, Algorithm 2 written out, and the paper's grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.gaussians import Gaussians
from cdm_lightning.sampling import Churn, Method, karras_sigmas, sample
from cdm_lightning.seeding import image_generators
from cdm_lightning.solvers import heun_step

DETERMINISTIC: tuple[Method, ...] = ("heun", "dpmpp_2m")
ALL: tuple[Method, ...] = (*DETERMINISTIC, "ancestral")
SHAPE = (3, 1, 1)
VARIANCE = torch.tensor([2.0, 0.25, 0.01], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)

# Karras et al. 2022, eq. 5, for 18 steps, rho 7, from 80 to 0.002.
# fmt: off
GRID_18 = [
    80.0, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.400935, 5.315195, 3.256822, 1.92334,
    1.088171, 0.5853481, 0.2964423, 0.1395165, 0.05994731, 0.02293452, 0.00752802, 0.002, 0.0
]
# fmt: on


def gaussian_source() -> Gaussians:
    basis = torch.eye(3, dtype=torch.float64)[None, :, :2]
    return Gaussians(torch.zeros(1).double(), MEAN[None], basis, VARIANCE[None, :2], VARIANCE[2:], SHAPE)


def noise_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solution(noise: Tensor, first: float, last: float) -> Tensor:
    """Follow the probability flow exactly: each direction shrinks as the deviation of its noised law."""
    mean, variance = MEAN.reshape(1, *SHAPE), VARIANCE.reshape(1, *SHAPE)
    return mean + (noise * first - mean) * ((last**2 + variance) / (first**2 + variance)).sqrt()


def error(steps: int, method: Method) -> float:
    noise, grid = noise_of(20), karras_sigmas(steps)[:-1]
    x = sample(gaussian_source().denoise, noise, grid, method=method)
    return float((x - solution(noise, 80.0, float(grid[-1]))).square().mean().sqrt())


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_the_ode_is_solved_at_second_order(method: Method) -> None:
    steps = (32, 64, 128, 256)
    errors = [error(count, method) for count in steps]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(1.85 < slope < 2.15 for slope in slopes), slopes
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_sample_ends_at_the_clean_solution(method: Method) -> None:
    noise = noise_of(20)
    x_0 = sample(gaussian_source().denoise, noise, karras_sigmas(256), method=method)
    torch.testing.assert_close(x_0, solution(noise, 80.0, 0.0), rtol=0, atol=2e-3)


def test_heun_step_is_the_trapezoidal_rule() -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - 3 * sigma[:, None] ** 2  # so that dx/dsigma is 3 sigma

    x, levels = torch.ones(2, 1, dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)
    moved = heun_step(denoise, x, *levels)
    torch.testing.assert_close(moved, x - 1.5 * (6.0 + 1.5) / 2, rtol=0, atol=1e-14)
    final = heun_step(denoise, x, levels[1], levels.new_zeros(()))
    torch.testing.assert_close(final, x - 0.5 * 1.5, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_denoiser_is_called_twice_a_step_by_heun_and_once_by_others_and_in_the_last(
    method: Method, dtype: torch.dtype
) -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.shape == (3, *SHAPE)
        assert x.dtype == sigma.dtype == dtype
        seen.append(sigma)
        return torch.full_like(x, 0.5)

    grid, generator = karras_sigmas(4), torch.Generator()
    x = sample(denoise, torch.ones(3, *SHAPE, dtype=dtype), grid, method=method, generator=generator)
    pairs = [level for both in zip(grid[:-1], grid[1:], strict=True) for level in both]
    levels = torch.stack(pairs[:-1] if method == "heun" else list(grid[:-1])).to(dtype)
    assert torch.equal(torch.stack(seen), levels[:, None].expand(-1, 3))
    torch.testing.assert_close(x, torch.full_like(x, 0.5))


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_on_step_sees_x_at_every_level_that_begins_a_step(method: Method) -> None:
    noise, grid, seen = noise_of(6), karras_sigmas(12), []

    def on_step(x: Tensor, sigma: Tensor) -> None:
        seen.append((x.clone(), sigma))

    sample(gaussian_source().denoise, noise, grid, method=method, on_step=on_step)
    assert torch.equal(torch.stack([sigma[0] for _, sigma in seen]), grid[:-1])
    assert all(sigma.shape == (6,) for _, sigma in seen)
    assert torch.equal(seen[0][0], noise * 80.0)
    for k in (3, 7):  # x is where a sampler that stops there would be
        torch.testing.assert_close(seen[k][0], sample(gaussian_source().denoise, noise, grid[: k + 1], method=method))


def test_karras_grid_is_the_papers() -> None:
    grid = karras_sigmas(18)
    assert grid.dtype == torch.float64
    assert grid.tolist() == pytest.approx(GRID_18, rel=1e-6)
    assert float(grid[-1]) == 0.0


def test_karras_grid_with_rho_one_is_even() -> None:
    assert karras_sigmas(5, 1.0, 9.0, rho=1.0).tolist() == pytest.approx([9, 7, 5, 3, 1, 0])


@given(st.integers(2, 60), st.floats(0.0021, 79.9))
@settings(deadline=None, derandomize=True)
def test_karras_grid_goes_through_a_level_and_still_falls(steps: int, through: float) -> None:
    grid, plain = karras_sigmas(steps, through=through), karras_sigmas(steps)
    assert len(grid) == steps + 1
    assert (grid.diff() < 0).all()
    assert torch.equal(grid[[0, -2, -1]], plain[[0, -2, -1]])
    if steps > 2:
        assert through in grid.tolist()
        assert (grid != plain).sum() <= 1


@pytest.mark.parametrize("through", [math.inf, 80.0, 100.0, 0.002, 0.0])
def test_karras_grid_ignores_a_level_outside_its_range(through: float) -> None:
    assert torch.equal(karras_sigmas(18, through=through), karras_sigmas(18))


def algorithm_2(denoise: Gaussians, noise: Tensor, grid: Tensor, churn: Churn, generator: torch.Generator) -> Tensor:
    """Karras et al. 2022, Algorithm 2, line by line, with the paper's letters."""
    t, n = grid.tolist(), len(grid) - 1
    x = noise * t[0]
    for i in range(n):
        gamma = min(churn.amount / n, 2**0.5 - 1) if churn.sigma_min <= t[i] <= churn.sigma_max else 0.0
        epsilon = churn.noise * torch.randn(x.shape, generator=generator).double()
        t_hat = t[i] + gamma * t[i]
        x_hat = x + (t_hat**2 - t[i] ** 2) ** 0.5 * epsilon
        d = (x_hat - denoise.denoise(x_hat, x.new_full((len(x),), t_hat))) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x - denoise.denoise(x, x.new_full((len(x),), t[i + 1]))) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2)
    return x


@pytest.mark.parametrize("amount", [2.0, 10.0, 40.0])
def test_sampler_is_algorithm_2(amount: float) -> None:
    source, noise, grid, churn = gaussian_source(), noise_of(4), karras_sigmas(18), Churn(amount)
    ours = sample(source.denoise, noise, grid, generator=torch.Generator().manual_seed(1), churn=churn)
    expected = algorithm_2(source, noise, grid, churn, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)  # the churn's noise is single precision


def test_churn_keeps_the_variance_of_a_gaussian_source_at_every_level() -> None:
    n, mean = 20000, MEAN.reshape(1, *SHAPE)
    variances: list[tuple[float, Tensor]] = []

    def on_step(x: Tensor, sigma: Tensor) -> None:
        variances.append((float(sigma[0]), (x - mean).square().mean((0, 2, 3))))

    start = noise_of(n) * (80.0**2 + VARIANCE.reshape(1, *SHAPE)).sqrt() / 80.0 + mean / 80.0
    churn = Churn(amount=40.0, noise=1.0)
    x_0 = sample(
        gaussian_source().denoise,
        start,
        karras_sigmas(160),
        generator=torch.Generator().manual_seed(3),
        on_step=on_step,
        churn=churn,
    )
    variances.append((0.0, (x_0 - mean).square().mean((0, 2, 3))))
    for sigma, measured in variances:
        torch.testing.assert_close(measured / (sigma**2 + VARIANCE), torch.ones(3).double(), rtol=0, atol=0.04)


def test_churn_is_new_noise() -> None:
    source, noise, grid = gaussian_source(), noise_of(4), karras_sigmas(18)
    plain = sample(source.denoise, noise, grid)
    quiet = sample(source.denoise, noise, grid, generator=torch.Generator(), churn=Churn(0.0))
    loud = sample(source.denoise, noise, grid, generator=torch.Generator(), churn=Churn(20.0))
    assert torch.equal(plain, quiet)
    assert not torch.allclose(plain, loud, atol=0.05)


def test_churn_raises_only_levels_in_its_range_and_at_most_by_root_two() -> None:
    churn = Churn(amount=100.0, sigma_min=0.1, sigma_max=10.0)
    assert float(churn.raised(torch.tensor(11.0), 10)) == 11.0
    assert float(churn.raised(torch.tensor(0.09), 10)) == pytest.approx(0.09)
    assert float(churn.raised(torch.tensor(1.0), 10)) == pytest.approx(2**0.5)
    assert float(churn.raised(torch.tensor(1.0), 1000)) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("method", "churn"), [("heun", None), ("heun", Churn(20.0)), ("dpmpp_2m", None), ("ancestral", None)]
)
def test_an_image_does_not_depend_on_its_batch(method: Method, churn: Churn | None) -> None:
    source, noise, grid = gaussian_source(), noise_of(8), karras_sigmas(18)

    def run(indices: list[int]) -> Tensor:
        generators = image_generators(0, indices, "churn")
        return sample(source.denoise, noise[indices], grid, method=method, generator=generators, churn=churn)

    together = run(list(range(8)))
    torch.testing.assert_close(torch.cat([run([k]) for k in range(8)]), together, rtol=0, atol=1e-11)
    torch.testing.assert_close(run([5, 2]), together[[5, 2]], rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_a_deterministic_sampler_draws_nothing(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    before, everywhere = generator.get_state(), torch.get_rng_state()
    sample(gaussian_source().denoise, noise_of(2), karras_sigmas(5), method=method, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)


@pytest.mark.parametrize(
    ("method", "churn", "said"),
    [
        ("heun", Churn(1.0), "churn needs a generator"),
        ("ancestral", None, "ancestral needs a generator"),
        ("dpmpp_2m", Churn(1.0), "churn is of heun alone, not of dpmpp_2m"),
        ("ancestral", Churn(1.0), "churn is of heun alone, not of ancestral"),
        ("ddim", None, "unknown method 'ddim'; expected one of"),
    ],
)
def test_what_cannot_be_sampled_is_refused(method: Method, churn: Churn | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sample(gaussian_source().denoise, noise_of(2), karras_sigmas(4), method=method, churn=churn)


TWO = Gaussians(
    torch.tensor([0.7, 0.3], dtype=torch.float64).log(),
    torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.5, 0.0]], dtype=torch.float64),
    torch.eye(3, dtype=torch.float64)[None, :, :1].expand(2, -1, -1),
    torch.full((2, 1), 0.05, dtype=torch.float64),
    torch.full((2,), 0.02, dtype=torch.float64),
    SHAPE,
)


@pytest.mark.parametrize("method", ALL)
def test_two_clusters_keep_their_shares(method: Method) -> None:
    """The clusters are nine deviations apart, so the sign of the first coordinate tells them."""
    n, generator = 4000, torch.Generator().manual_seed(1)
    x_0 = sample(TWO.denoise, noise_of(n), karras_sigmas(40), method=method, generator=generator)
    assert abs(float((x_0[:, 0] < 0).double().mean()) - 0.7) < 3.5 * math.sqrt(0.7 * 0.3 / n)
