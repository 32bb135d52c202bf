"""Evidence of the denoising error, and along a path. Oracle: Gaussian sources, of which all is known exactly."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdm_lightning.evidence import NetworkEvidence, path_log_density
from cdm_lightning.gaussians import Gaussians

SHAPE = (1, 2, 3)
TOP = 2.0


def gaussian(seed: int, size: float = 0.6) -> Gaussians:
    """Return one Gaussian with four directions of its own."""
    g = torch.Generator().manual_seed(seed)
    mean = 0.5 * torch.randn(1, 6, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(6, 4, generator=g, dtype=torch.float64))[0][None]
    variance = size * torch.rand(1, 4, generator=g, dtype=torch.float64) + 0.05
    return Gaussians(mean.new_zeros(1), mean, basis, variance, mean.new_full((1,), 0.05), SHAPE)


def covariance(form: Gaussians, sigma: float) -> Tensor:
    basis, eye = form.basis[0], torch.eye(6, dtype=torch.float64)
    spread = basis @ torch.diag(form.variance[0] - form.rest[0]) @ basis.T
    return spread + (float(form.rest) + sigma**2) * eye


def mean_log_density_at_top(form: Gaussians, x: Tensor, sigma: float) -> Tensor:
    """Return E[log p(x + sqrt(v) n; top)] exactly: log p(x; top) - v / 2 trace of the precision."""
    precision = torch.linalg.inv(covariance(form, TOP))
    at_top = form.log_density(x, torch.full((len(x),), TOP, dtype=torch.float64))
    return at_top - (TOP**2 - sigma**2) / 2 * precision.trace()


def noised(form: Gaussians, sigma: float, n: int = 8, seed: int = 5) -> tuple[Tensor, Tensor]:
    draws = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    root = torch.linalg.cholesky(covariance(form, sigma))
    return (form.mean + draws @ root.T).reshape(n, *SHAPE), torch.full((n,), sigma, dtype=torch.float64)


TRUE, FORM, OTHER = gaussian(1), gaussian(2, 1.0), gaussian(3)


def exact(true: Gaussians, form: Gaussians, x: Tensor, sigma: float) -> Tensor:
    """Return the log density of a source that is `true` below the top, weighed by `form` at the top."""
    own = true.log_density(x, torch.full((len(x),), sigma, dtype=torch.float64))
    return own + mean_log_density_at_top(form, x, sigma) - mean_log_density_at_top(true, x, sigma)


def error(levels: int, pairs: int, sigma: float = 0.1) -> float:
    """Return the root mean square error in nats."""
    x, level = noised(TRUE, sigma)
    evidence = NetworkEvidence(TRUE.denoise, FORM, TOP, levels, pairs)
    return float((evidence.log_density(x, level) - exact(TRUE, FORM, x, sigma)).square().mean().sqrt())


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_it_tends_to_the_log_density_of_the_ideal_denoiser(sigma: float) -> None:
    assert error(32, 64, sigma) < 0.1  # nats; measured: 0.046, 0.006, 0.004


def test_the_error_falls_with_the_draws_and_with_the_levels() -> None:
    coarse, finer, finest = error(4, 1), error(16, 16), error(32, 64)  # 0.64, 0.14, 0.019 nats
    assert finest < 0.4 * finer < 0.2 * coarse


def test_what_lies_above_the_top_is_common_if_the_top_is_high() -> None:
    x, sigma = noised(TRUE, 0.2)
    known = TRUE.log_density(x, sigma) - OTHER.log_density(x, sigma)
    found = [NetworkEvidence(true.denoise, FORM, 60.0, 64, 16).log_density(x, sigma) for true in (TRUE, OTHER)]
    assert float((found[0] - found[1] - known).square().mean().sqrt()) < 0.05 * float(known.square().mean().sqrt())


def test_a_denoiser_that_is_the_closed_form_adds_nothing() -> None:
    x, sigma = noised(TRUE, 0.1)
    evidence = NetworkEvidence(FORM.denoise, FORM, TOP)
    torch.testing.assert_close(evidence.log_density(x, sigma), FORM.log_density(x, sigma), rtol=0, atol=0)


def test_at_and_above_the_top_it_is_the_closed_form_and_asks_no_network() -> None:
    def refuse(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("asked")

    x = noised(TRUE, 2.0, n=2)[0]
    sigma = torch.tensor([TOP, 7.0], dtype=torch.float64)
    found = NetworkEvidence(refuse, FORM, TOP).log_density(x, sigma)
    torch.testing.assert_close(found, FORM.log_density(x, sigma), rtol=0, atol=0)


def test_every_image_of_a_batch_is_by_itself() -> None:
    x = noised(TRUE, 0.5, n=3)[0]
    sigma = torch.tensor([0.05, 5.0, 0.5], dtype=torch.float64)
    evidence = NetworkEvidence(TRUE.denoise, FORM, TOP)
    one_by_one = [evidence.log_density(x[k : k + 1], sigma[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(evidence.log_density(x, sigma), torch.cat(one_by_one), rtol=1e-10, atol=0)


def test_network_evaluations_are_two_for_each_level_and_pair() -> None:
    asked = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(len(x))
        return TRUE.denoise(x, sigma)

    NetworkEvidence(counting, FORM, TOP, levels=3, pairs=2).log_density(*noised(TRUE, 0.1, n=5))
    assert sum(asked) == 2 * 3 * 2 * 5


def test_common_draws_make_differences_of_sources_surer() -> None:
    x, sigma = noised(TRUE, 0.1)

    def found(denoise: Callable[[Tensor, Tensor], Tensor], seed: int) -> Tensor:
        return NetworkEvidence(denoise, FORM, TOP, seed=seed).log_density(x, sigma)

    near = gaussian(1, 0.62).denoise  # much like TRUE, as sources of one domain are
    common = torch.stack([found(TRUE.denoise, seed) - found(near, seed) for seed in range(20)])
    apart = torch.stack([found(TRUE.denoise, seed) - found(near, seed + 100) for seed in range(20)])
    assert float(common.var(0).mean()) < 0.1 * float(apart.var(0).mean())


def path_error(steps: int) -> float:
    """Return the largest error of the posterior of three sources, filtered along noising paths from 20 to 0.3."""
    forms, sigmas = [TRUE, FORM, OTHER], torch.logspace(1.3, -0.52288, steps + 1, dtype=torch.float64)
    x = noised(TRUE, float(sigmas[-1]), n=16)[0]
    g, path = torch.Generator().manual_seed(0), [x]
    for low, high in zip(sigmas.flip(0)[:-1], sigmas.flip(0)[1:], strict=True):
        noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
        path.append(path[-1] + (high.square() - low.square()).sqrt() * noise)
    falling = torch.stack(path[::-1])
    starts = [form.log_density(falling[0], sigmas[0].expand(16)) for form in forms]
    found = [path_log_density(f.denoise, falling, sigmas, s)[-1] for f, s in zip(forms, starts, strict=True)]
    analytic = torch.stack([form.log_density(x, sigmas[-1].expand(16)) for form in forms])
    return float((torch.stack(found).softmax(0) - analytic.softmax(0)).square().mean().sqrt())


def test_a_posterior_filtered_along_the_noising_path_tends_to_that_of_its_end() -> None:
    coarse, finer, finest = path_error(16), path_error(64), path_error(256)  # 0.090, 0.038, 0.015
    assert finest < 0.6 * finer < 0.36 * coarse
    assert finest < 0.03


def test_a_path_starts_at_its_start_and_one_step_is_a_normal_law() -> None:
    path, start = (
        torch.stack([noised(TRUE, s, seed=k)[0] for k, s in enumerate((1.0, 0.5))]),
        torch.arange(8.0).double(),
    )
    sigmas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = path_log_density(TRUE.denoise, path, sigmas, start)
    gradient = torch.func.grad(lambda x: TRUE.log_density(x, torch.ones(8, dtype=torch.float64)).sum())(path[0])
    step = torch.distributions.Normal(path[0] + 0.75 * gradient, 0.75**0.5).log_prob(path[1]).flatten(1).sum(1)
    constant = torch.distributions.Normal(0.0, 0.75**0.5).log_prob(torch.tensor(0.0)) * 6
    assert torch.equal(found[0], start)
    torch.testing.assert_close(found[1], start + step - constant, rtol=1e-6, atol=1e-6)


def test_no_network_is_asked_above_the_levels_that_it_was_trained_on() -> None:
    x, level = noised(TRUE, 0.3)
    endless, high = (NetworkEvidence(TRUE.denoise, FORM, top).log_density(x, level) for top in (math.inf, 80.0))
    torch.testing.assert_close(endless, high, rtol=0, atol=0)
