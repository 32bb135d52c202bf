"""The closed form. Oracles: torch's dense normal law, the gradient of the density, and formulas written out densely."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians, Strength, cluster_of
from cdm_lightning.sampling import karras_sigmas, sample

SHAPE = (1, 3, 4)
DIMENSION = math.prod(SHAPE)
SIGMAS = [0.01, 0.1, 0.5, 2.0, 10.0, 80.0]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(seed: int, clusters: int = 3, rank: int = 4, scale: float = 1.0) -> Gaussians:
    g = generator(seed)
    basis = torch.linalg.qr(torch.randn(clusters, DIMENSION, DIMENSION, generator=g, dtype=torch.float64))[0]
    rest = 0.02 + 0.1 * torch.rand(clusters, generator=g, dtype=torch.float64)
    variance = rest[:, None] + torch.rand(clusters, rank, generator=g, dtype=torch.float64)
    share = 0.1 + torch.rand(clusters, generator=g, dtype=torch.float64)
    mean = scale * torch.randn(clusters, DIMENSION, generator=g, dtype=torch.float64)
    return Gaussians((share / share.sum()).log(), mean, basis[..., :rank].contiguous(), variance, rest, SHAPE)


def images(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return correlated images: uncorrelated ones would hide a wrong basis."""
    g = generator(seed)
    mixing = torch.randn(DIMENSION, DIMENSION, generator=g, dtype=torch.float64) / DIMENSION**0.5
    flat = 0.5 * torch.randn(n, DIMENSION, generator=g, dtype=torch.float64) @ mixing
    return (flat + 0.2).reshape(n, *SHAPE).to(dtype)


def covariance(mixed: Gaussians) -> Tensor:
    """Return basis diag(variance) basis^T + rest (I - basis basis^T), densely: [cluster, dimension, dimension]."""
    shared = mixed.basis @ mixed.basis.mT
    outside = torch.eye(DIMENSION, dtype=mixed.mean.dtype) - shared
    return mixed.basis @ torch.diag_embed(mixed.variance) @ mixed.basis.mT + mixed.rest[:, None, None] * outside


def moments(mixed: Gaussians) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the whole mixture, by the law of total covariance."""
    share = mixed.log_share.exp()
    mean = share @ mixed.mean
    off = mixed.mean - mean
    return mean, torch.einsum("k,kij->ij", share, covariance(mixed)) + (share[:, None] * off).T @ off


def noised(mixed: Gaussians, sigma: float, n: int = 5, seed: int = 9) -> Tensor:
    g = generator(seed)
    cluster = torch.randint(len(mixed.mean), (n,), generator=g)
    root = torch.linalg.cholesky(covariance(mixed)[cluster])
    noise = torch.randn(2, n, DIMENSION, 1, generator=g, dtype=torch.float64)
    return (mixed.mean[cluster] + (root @ noise[0] + sigma * noise[1])[..., 0]).reshape(n, *SHAPE)


def dense_log_density(mixed: Gaussians, x: Tensor, sigma: float) -> Tensor:
    total = covariance(mixed) + sigma**2 * torch.eye(DIMENSION, dtype=torch.float64)
    law = MultivariateNormal(mixed.mean, total)
    return (mixed.log_share + law.log_prob(x.flatten(1)[:, None])).logsumexp(1)


def inverse_wishart_mode(members: Tensor, prior: Gaussians, strength: Strength) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean and covariance, densely (Murphy 2012, section 4.6.3; Psi = strength * prior's)."""
    n, centre, k, nu = len(members), members.mean(0), strength.mean, strength.covariance
    off = (centre - prior.mean[0])[:, None]
    scatter = (members - centre).T @ (members - centre)
    total = nu * covariance(prior)[0] + scatter + k * n / (k + n) * off @ off.T
    return (k * prior.mean[0] + n * centre) / (k + n), total / (nu + n)


def truncated(dense: Tensor, rank: int) -> Tensor:
    """Keep the first eigenvectors of a covariance and replace the other eigenvalues by their average."""
    values, vectors = torch.linalg.eigh(dense)
    values = values.clone()
    values[:-rank] = values[:-rank].mean()
    return vectors @ torch.diag(values) @ vectors.T


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("clusters", "rank"), [(1, 0), (1, 11), (3, 4)])
def test_log_density_is_that_of_the_dense_normal_laws(sigma: float, clusters: int, rank: int) -> None:
    mixed = mixture(1, clusters, rank)
    x = noised(mixed, sigma)
    expected = dense_log_density(mixed, x, sigma)
    torch.testing.assert_close(
        mixed.log_density(x, torch.full((5,), sigma, dtype=torch.float64)), expected, rtol=1e-10, atol=1e-10
    )


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, DIMENSION - 1), st.floats(-4.0, 4.4))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_log_density_of_any_mixture_at_any_level(seed: int, clusters: int, rank: int, log_sigma: float) -> None:
    mixed, sigma = mixture(seed, clusters, rank), math.exp(log_sigma)
    x = noised(mixed, sigma)
    expected = dense_log_density(mixed, x, sigma)
    torch.testing.assert_close(mixed.log_density(x, x.new_full((5,), sigma)), expected, rtol=1e-10, atol=1e-10)


def test_every_image_has_its_own_level() -> None:
    mixed, sigma = mixture(2), torch.tensor(SIGMAS, dtype=torch.float64)
    x = noised(mixed, 1.0, n=len(SIGMAS))
    density, denoised = mixed.posterior(x, sigma)
    for k in range(len(SIGMAS)):
        one = slice(k, k + 1)
        torch.testing.assert_close(density[one], mixed.log_density(x[one], sigma[one]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(denoised[one], mixed.denoise(x[one], sigma[one]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_denoise_is_tweedies_formula_on_the_gradient_of_log_density(sigma: float) -> None:
    mixed = mixture(3)
    x = noised(mixed, sigma).requires_grad_()
    level = torch.full((5,), sigma, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(mixed.log_density(x, level).sum(), x)
    torch.testing.assert_close(mixed.denoise(x, level), x + sigma**2 * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 80.0])
def test_composed_gaussian_sources_are_the_mixture_of_their_union(sigma: float) -> None:
    parts = {f"source{k}": mixture(10 + k, clusters=k + 1, rank=2 + k, scale=0.3) for k in range(4)}
    prior = {"source0": 0.1, "source1": 0.2, "source2": 0.3, "source3": 0.4}
    evidence = {source: GaussianEvidence(part, Calibration.none(), 0.0) for source, part in parts.items()}
    composed = ComposedDenoiser({s: part.denoise for s, part in parts.items()}, evidence, prior, "posterior")

    padded = [pad(part, 5) for part in parts.values()]
    log_share = torch.cat([part.log_share + math.log(prior[source]) for source, part in parts.items()])
    columns = {name: torch.cat([part.tensors()[name] for part in padded]) for name in padded[0].tensors()}
    union = Gaussians.from_tensors(columns | {"log_share": log_share}, SHAPE)

    x = torch.cat([noised(part, sigma, n=3) for part in parts.values()])
    level = x.new_full((len(x),), sigma)
    torch.testing.assert_close(composed(x, level), union.denoise(x, level), rtol=0, atol=1e-10)


def pad(mixed: Gaussians, rank: int) -> Gaussians:
    """Give a mixture more directions, of variance `rest`: the law stays what it is."""
    clusters, dimension, kept = mixed.basis.shape
    basis = torch.cat([mixed.basis, mixed.basis.new_zeros(clusters, dimension, rank - kept)], 2)
    variance = torch.cat([mixed.variance, mixed.rest[:, None].expand(-1, rank - kept)], 1)
    return Gaussians(mixed.log_share, mixed.mean, basis, variance, mixed.rest, mixed.shape)


def test_a_mixture_does_not_know_the_order_of_its_clusters() -> None:
    mixed, order = mixture(4), torch.tensor([2, 0, 1])
    turned = Gaussians.from_tensors({name: tensor[order] for name, tensor in mixed.tensors().items()}, SHAPE)
    x, level = noised(mixed, 0.3), torch.full((5,), 0.3, dtype=torch.float64)
    for ours, theirs in zip(mixed.posterior(x, level), turned.posterior(x, level), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [99, 100, 2000])
def test_fit_of_full_rank_has_the_moments_of_the_sample(n: int) -> None:
    x_0 = images(n)
    mean, dense = moments(Gaussians.fit(x_0, seed=0, rank=DIMENSION - 1))
    torch.testing.assert_close(mean, x_0.flatten(1).mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(dense, torch.cov(x_0.flatten(1).T, correction=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [4, 9, 40])  # fewer and more samples than dimensions
def test_fit_of_low_rank_keeps_the_first_directions_and_averages_the_rest(n: int) -> None:
    x_0 = images(n)
    fitted = Gaussians.fit(x_0, seed=0, rank=3)
    expected = truncated(torch.cov(x_0.flatten(1).T, correction=0), 3)
    torch.testing.assert_close(covariance(fitted)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [3, DIMENSION - 1])
@pytest.mark.parametrize("n", [1, 2, 3, 12, 40, 800])  # one cluster and three; fewer and more rows than dimensions
def test_shrinkage_is_the_normal_inverse_wishart_posterior(n: int, rank: int) -> None:
    x_0, public, strength = images(n, seed=5), mixture(6, clusters=3, rank=4, scale=0.3), Strength(2.5, 7.0)
    fitted = Gaussians.fit(x_0, seed=3, public=public, strength=strength, rank=rank)
    flat = x_0.flatten(1)
    cluster = cluster_of(flat, 3, n // 250)
    for k in range(len(fitted.mean)):
        members = flat[cluster == k]
        distance = (public.mean - members.mean(0)).norm(dim=1)
        mean, dense = inverse_wishart_mode(members, public.nearest(public.mean[distance.argmin()]), strength)
        torch.testing.assert_close(fitted.mean[k], mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(covariance(fitted)[k], truncated(dense, rank), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "clusters", "expected"), [(750, 2, 2), (750, 12, 3), (550, 12, 2), (700, 1, 1)])
def test_there_is_a_cluster_for_every_250_images_up_to_the_most(n: int, clusters: int, expected: int) -> None:
    fitted = Gaussians.fit(images(n), seed=0, rank=3, clusters=clusters)
    assert len(fitted.mean) == expected


def test_nearest_returns_the_whole_cluster() -> None:
    public = mixture(7)
    near = public.nearest(public.mean[2] + 1e-3)
    assert near.log_share.exp().sum() == 1
    torch.testing.assert_close(near.mean[0], public.mean[2], rtol=0, atol=0)
    torch.testing.assert_close(covariance(near)[0], covariance(public)[2], rtol=0, atol=0)


def test_a_public_variance_rounded_below_the_rest_does_no_harm() -> None:
    public = mixture(6)
    public.variance[:, -1] = public.rest * (1 - 1e-7)
    fitted = Gaussians.fit(images(20), seed=0, public=public, rank=4)
    assert all(tensor.isfinite().all() for tensor in fitted.tensors().values())


@pytest.mark.parametrize("strength", [0.0, 1e-13])
def test_without_strength_the_prior_is_not_heard(strength: float) -> None:
    x_0 = images(30)
    shrunk = Gaussians.fit(x_0, seed=0, public=mixture(8), strength=Strength(strength, strength), rank=DIMENSION - 1)
    free = Gaussians.fit(x_0, seed=0, rank=DIMENSION - 1)
    torch.testing.assert_close(shrunk.mean, free.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(shrunk), covariance(free), rtol=0, atol=1e-10)


def test_with_endless_strength_only_the_prior_is_heard() -> None:
    x_0, public = images(30), mixture(8, rank=4)
    fitted = Gaussians.fit(x_0, seed=0, public=public, strength=Strength(1e14, 1e14), rank=4)
    near = public.nearest(x_0.flatten(1).mean(0))
    torch.testing.assert_close(fitted.mean, near.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(fitted), covariance(near), rtol=0, atol=1e-10)


@pytest.mark.parametrize("copies", [1, 2])
def test_one_image_alone_is_a_point(copies: int) -> None:
    image = images(1)
    fitted = Gaussians.fit(image.repeat(copies, 1, 1, 1), seed=0, rank=4)
    x, level = images(5, seed=1), torch.full((5,), 0.5, dtype=torch.float64)
    square = (x - image).square().flatten(1).sum(1)
    expected = -0.5 * (square / 0.25 + DIMENSION * math.log(2 * math.pi * 0.25))
    torch.testing.assert_close(fitted.log_density(x, level), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fitted.denoise(x, level), image.expand_as(x), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_hundred_equal_images_are_one_cluster() -> None:
    fitted = Gaussians.fit(images(1).repeat(100, 1, 1, 1), seed=0, public=mixture(1), rank=4)
    assert fitted.mean.shape == (1, DIMENSION)
    assert fitted.log_share.tolist() == [0.0]


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (250, 1), (499, 1), (500, 2), (749, 2), (2600, 10)])
def test_there_is_a_cluster_for_every_250_images_up_to_ten(n: int, clusters: int) -> None:
    fitted = Gaussians.fit(images(n), seed=0, rank=4)
    assert fitted.mean.shape == (clusters, DIMENSION)
    assert fitted.basis.shape == (clusters, DIMENSION, 4)
    assert float(fitted.log_share.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_shares_and_means_are_those_of_the_clusters() -> None:
    blobs = torch.cat([images(300) - 5, images(700, seed=1) + 5])
    fitted = Gaussians.fit(blobs, seed=0, rank=4)
    low = fitted.mean.mean(1) < 0
    assert len(low) == 4
    assert float(fitted.log_share[low].exp().sum()) == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize("public", [None, mixture(2, rank=4)])
@pytest.mark.parametrize("n", [2, 12, 120])
def test_basis_is_orthonormal_and_variances_fall_to_the_rest(n: int, public: Gaussians | None) -> None:
    fitted = Gaussians.fit(images(n), seed=0, public=public, rank=8)
    gram = fitted.basis.mT @ fitted.basis
    kept = torch.diagonal(gram, dim1=1, dim2=2).round()  # columns that few samples cannot fill are zero
    torch.testing.assert_close(gram, torch.diag_embed(kept), rtol=0, atol=1e-12)
    assert (fitted.variance.diff(dim=1) <= 1e-15).all()
    assert (fitted.variance >= fitted.rest[:, None] - 1e-15).all()


def test_tensors_and_from_tensors_are_inverse() -> None:
    mixed = Gaussians.fit(images(120, dtype=torch.float32), seed=0, rank=4)
    again = Gaussians.from_tensors(mixed.tensors(), mixed.shape)
    assert again.shape == SHAPE
    for name, tensor in mixed.tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(getattr(again, name), tensor)
    assert set(mixed.tensors()) == {"log_share", "mean", "basis", "variance", "rest"}
    moved = mixed.to("cpu", torch.float64)
    assert moved.mean.dtype == torch.float64
    assert torch.equal(moved.to("cpu", torch.float32).basis, mixed.basis)


@pytest.mark.parametrize("sigma", [0.002, 0.02, 80.0])
def test_single_precision_is_finite_and_close_to_double(sigma: float) -> None:
    x_0 = images(60)
    single = Gaussians.fit(x_0.float(), seed=0, rank=4)
    x = (x_0 + sigma * images(60, seed=1)).float()
    level = torch.full((60,), sigma)
    density, denoised = single.posterior(x, level)
    exact_density, exact = single.to("cpu", torch.float64).posterior(x.double(), level.double())
    torch.testing.assert_close(denoised.double(), exact, rtol=0, atol=2e-6 * max(1.0, sigma))
    torch.testing.assert_close(density.double(), exact_density, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.002, 80.0])
def test_single_precision_is_finite_for_degenerate_sources(sigma: float) -> None:
    x = images(4, dtype=torch.float32)
    for x_0 in (x[:1], x[:1].repeat(3, 1, 1, 1), torch.zeros_like(x)):
        density, denoised = Gaussians.fit(x_0, seed=0).posterior(100 * x, torch.full((4,), sigma))
        assert density.isfinite().all()
        assert denoised.isfinite().all()


def numpy_state() -> list[int]:
    """Return the numbers of numpy's global generator."""
    return [int(number) for number in np.random.get_state(legacy=False)["state"]["key"]]


def test_fit_neither_reads_nor_moves_global_random_state() -> None:
    x_0, results = images(300), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        Gaussians.fit(images(200, seed=seed), seed=seed)
        before = torch.get_rng_state(), numpy_state()
        results.append(Gaussians.fit(x_0, seed=7, rank=4).tensors())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert numpy_state() == before[1]
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])


def test_fit_is_a_function_of_the_seed() -> None:
    x_0 = images(600)
    assert torch.equal(Gaussians.fit(x_0, seed=1, rank=4).mean, Gaussians.fit(x_0, seed=1, rank=4).mean)
    assert not torch.equal(Gaussians.fit(x_0, seed=1, rank=4).mean, Gaussians.fit(x_0, seed=2, rank=4).mean)


def test_fit_takes_seeds_of_63_bits() -> None:
    assert len(Gaussians.fit(images(500), seed=2**63 - 1, rank=4).mean) == 2


REPEATS = """
import hashlib
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info
from cdm_lightning import gaussians

threads = set()

class Watched(KMeans):
    def fit_predict(self, X):
        threads.update(pool["num_threads"] for pool in threadpool_info())
        return super().fit_predict(X)

def available():
    return max(pool["num_threads"] for pool in threadpool_info())

gaussians.KMeans = Watched
flat = torch.rand(2000, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
digests = {hashlib.sha256(gaussians.cluster_of(flat, 0, 10).numpy().tobytes()).hexdigest() for _ in range(20)}
print(len(digests), sorted(threads), available() > 1)
"""


def test_clusters_are_equal_in_twenty_repeats_though_there_are_four_threads() -> None:
    """Threads add up a cluster in the order in which they get a lock, and three or more orders differ in their sums.

    On two cores there are two threads, whose sums commute, so the test also looks at the threads that k-means has.
    """
    done = subprocess.run(
        [sys.executable, "-c", REPEATS],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "4"},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert done.stdout == "1 [1] True\n"


def test_autocast_does_not_lower_the_precision_of_a_closed_form() -> None:
    mixed = Gaussians.fit(images(60, dtype=torch.float32), seed=0, rank=4)
    x, sigma = images(5, seed=1, dtype=torch.float32), torch.full((5,), 0.05)
    expected = mixed.posterior(x, sigma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixed.log_density(x, sigma), expected[0])
        assert torch.equal(mixed.denoise(x, sigma), expected[1])
        assert (x.flatten(1) @ x.flatten(1).T).dtype == torch.bfloat16, "autocast is on"


@pytest.mark.parametrize("level", [0.3, 2.0])
def test_draws_have_the_moments_of_every_cluster(level: float) -> None:
    mixed = mixture(3, clusters=2).to("cpu", torch.float64)
    noise = torch.randn(40_000, *SHAPE, generator=generator(0), dtype=torch.float64)
    uniform = torch.rand(40_000, generator=generator(1), dtype=torch.float64)
    drawn = mixed.draw(noise, mixed.draw_cluster(uniform), level).flatten(1)
    first = uniform < float(mixed.log_share[0].exp())
    for k, members in enumerate((drawn[first], drawn[~first])):
        basis, excess = mixed.basis[k], mixed.variance[k] - mixed.rest[k]
        covariance = (basis * excess) @ basis.T + (mixed.rest[k] + level**2) * torch.eye(DIMENSION, dtype=basis.dtype)
        error = covariance.diagonal().sqrt() / math.sqrt(len(members))
        assert ((members.mean(0) - mixed.mean[k]).abs() < 5 * error).all()
        spread = torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt() / math.sqrt(len(members))
        assert ((torch.cov(members.T) - covariance).abs() < 8 * spread).all()


def test_a_draw_is_the_end_of_the_flow_from_the_same_noise() -> None:
    """Oracle: the sampler, with many small steps from a level far above the data."""
    single = mixture(5, clusters=1).to("cpu", torch.float64)
    noise = torch.randn(6, *SHAPE, generator=generator(0), dtype=torch.float64)
    sigmas = karras_sigmas(600, 0.5, 3000.0)[:-1]
    drawn = single.draw(noise, torch.zeros(6, dtype=torch.long), 0.5)
    torch.testing.assert_close(drawn, sample(single.denoise, noise, sigmas), rtol=0, atol=3e-3)


def test_a_rank_above_the_dimension_is_every_direction() -> None:
    flat = (
        torch.randn(50, 4, generator=generator(0), dtype=torch.float64)
        @ torch.randn(4, 4, generator=generator(1)).double()
    )
    form = Gaussians.fit(flat.reshape(50, 1, 2, 2), seed=0, rank=64, clusters=1)
    law = MultivariateNormal(flat.mean(0), torch.cov(flat.T, correction=0) + 0.09 * torch.eye(4).double())
    sigma = torch.full((50,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(form.log_density(flat.reshape(50, 1, 2, 2), sigma), law.log_prob(flat))
