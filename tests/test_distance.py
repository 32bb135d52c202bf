"""The bound on a composed denoiser's distance. Oracles: mixtures of Gaussians, whose ideal pairs are known; limits."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.composition import mixture_weights
from cdm_lightning.distance import compartments_term, weights_term
from cdm_lightning.gaussians import Gaussians
from tests.test_gaussians import DIMENSION, SHAPE, generator, mixture

SIGMAS = [0.05, 0.3, 1.0, 5.0, 20.0]
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
SOURCES, CLUSTERS, POINTS = len(PRIOR), 2, 60
ROUNDING = 1e-12


@dataclass(frozen=True)
class Pair:
    """Weights [source, batch] and denoised images [source, batch, ...] of all sources."""

    weights: Tensor
    denoised: Tensor

    def composed(self) -> Tensor:
        return sum(
            (w[:, None, None, None] * d for w, d in zip(self.weights, self.denoised, strict=True)), torch.zeros(1)
        )


def truth() -> list[Gaussians]:
    return [mixture(seed, CLUSTERS, scale=0.5) for seed in range(SOURCES)]


def draw(source: Gaussians, n: int, seed: int) -> Tensor:
    """Return n images of a mixture of Gaussians."""
    own = generator(seed)
    k = torch.multinomial(source.log_share.exp(), n, replacement=True, generator=own)
    noise = torch.randn(n, DIMENSION, generator=own, dtype=torch.float64)
    along = torch.einsum("nd,ndr->nr", noise, source.basis[k])
    scaled = along * (source.variance[k].sqrt() - source.rest[k].sqrt()[:, None])
    flat = source.mean[k] + source.rest[k].sqrt()[:, None] * noise + torch.einsum("nr,ndr->nd", scaled, source.basis[k])
    return flat.reshape(n, *SHAPE)


def pair(sources: list[Gaussians], x: Tensor, sigma: Tensor) -> Pair:
    log_density = torch.stack([source.log_density(x, sigma) for source in sources])
    denoised = torch.stack([source.denoise(x, sigma) for source in sources])
    return Pair(mixture_weights(log_density, PRIOR.log()), denoised)


def noised(sigma: float) -> tuple[Tensor, Tensor]:
    """Return noised images of all sources, and their levels."""
    x_0 = torch.cat([draw(source, POINTS, 10 + seed) for seed, source in enumerate(truth())])
    noise = torch.randn(x_0.shape, generator=generator(20), dtype=torch.float64)
    return x_0 + sigma * noise, x_0.new_full((len(x_0),), sigma)


def union(sources: list[Gaussians]) -> Gaussians:
    """Return the whole mixture as one, without any composition."""
    share = torch.cat([source.log_share + log for source, log in zip(sources, PRIOR.log(), strict=True)])
    parts = {name: torch.cat([source.tensors()[name] for source in sources]) for name in sources[0].tensors()}
    return Gaussians.from_tensors(parts | {"log_share": share}, SHAPE)


def fitted(n: int, seed: int) -> list[Gaussians]:
    """Return what is learned from n images of each source."""
    images = [draw(source, n, 100 * seed + i) for i, source in enumerate(truth())]
    return [Gaussians.fit(some, seed=0, rank=4) for some in images]


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum((1, 2, 3)).sqrt()


def terms(learned: Pair, ideal: Pair) -> tuple[Tensor, Tensor]:
    return (
        compartments_term(learned.weights, learned.denoised, ideal.denoised),
        weights_term(learned.weights, ideal.weights, ideal.denoised),
    )


def test_drawn_images_have_the_moments_of_their_mixture() -> None:
    source = mixture(0, clusters=1)
    flat = draw(source, 200_000, seed=0).flatten(1)
    torch.testing.assert_close(flat.mean(0), source.mean[0], rtol=0, atol=0.01)
    outside = torch.eye(DIMENSION, dtype=torch.float64) - source.basis[0] @ source.basis[0].T
    covariance = source.basis[0] * source.variance[0] @ source.basis[0].T + source.rest[0] * outside
    torch.testing.assert_close(flat.T.cov(), covariance, rtol=0, atol=0.01)


@pytest.mark.parametrize("n", [5, 40, 400])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_bound_holds_at_every_image_for_what_is_fitted_to_few(n: int, sigma: float) -> None:
    x, level = noised(sigma)
    learned = pair(fitted(n, seed=1), x, level)
    apart = distance(learned.composed(), union(truth()).denoise(x, level))
    compartments, weights = terms(learned, pair(truth(), x, level))
    assert (apart > 0).all()
    assert (apart <= compartments + weights + ROUNDING).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SIGMAS), st.floats(0, 10), st.floats(0, 3))
def test_the_bound_holds_for_any_parts_and_weights(seed: int, sigma: float, of_weights: float, of_parts: float) -> None:
    x, level = noised(sigma)
    ideal, own = pair(truth(), x, level), generator(seed)
    logits = ideal.weights.log() + of_weights * torch.randn(ideal.weights.shape, generator=own, dtype=torch.float64)
    off = of_parts * torch.randn(ideal.denoised.shape, generator=own, dtype=torch.float64)
    learned = Pair(logits.softmax(0), ideal.denoised + off)
    apart = distance(learned.composed(), union(truth()).denoise(x, level))
    compartments, weights = terms(learned, ideal)
    assert (apart <= compartments + weights + 1e-9).all()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_with_ideal_weights_the_parts_alone_bound_the_distance(sigma: float) -> None:
    x, level = noised(sigma)
    ideal, learned = pair(truth(), x, level), pair(fitted(40, seed=2), x, level)
    half = Pair(ideal.weights, learned.denoised)
    compartments, weights = terms(half, ideal)
    assert torch.equal(weights, torch.zeros_like(weights))
    assert (distance(half.composed(), union(truth()).denoise(x, level)) <= compartments + ROUNDING).all()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_bound_of_the_parts_is_reached_where_all_err_alike(sigma: float) -> None:
    x, level = noised(sigma)
    ideal = pair(truth(), x, level)
    off = torch.randn(x.shape, generator=generator(3), dtype=torch.float64)
    alike = Pair(ideal.weights, ideal.denoised + off)
    compartments, _ = terms(alike, ideal)
    apart = distance(alike.composed(), union(truth()).denoise(x, level))
    torch.testing.assert_close(apart, compartments, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_with_ideal_parts_the_weights_are_the_whole_distance(sigma: float) -> None:
    x, level = noised(sigma)
    ideal, learned = pair(truth(), x, level), pair(fitted(40, seed=2), x, level)
    half = Pair(learned.weights, ideal.denoised)
    compartments, weights = terms(half, ideal)
    assert torch.equal(compartments, torch.zeros_like(compartments))
    apart = distance(half.composed(), union(truth()).denoise(x, level))
    torch.testing.assert_close(apart, weights, rtol=1e-6, atol=1e-12)


def test_both_terms_fall_with_the_number_of_images() -> None:
    """One cluster each, so that the fit can reach the truth."""
    sources = [mixture(seed, clusters=1, scale=0.3) for seed in range(SOURCES)]
    x_0 = torch.cat([draw(source, POINTS, 10 + seed) for seed, source in enumerate(sources)])
    x = x_0 + torch.randn(x_0.shape, generator=generator(20), dtype=torch.float64)
    level = torch.ones(len(x), dtype=torch.float64)
    found = []
    for n in (10, 30, 90):
        learned = [Gaussians.fit(draw(source, n, 50 + i), seed=0, rank=4) for i, source in enumerate(sources)]
        found.append([float(term.mean()) for term in terms(pair(learned, x, level), pair(sources, x, level))])
    (first, second), (third, fourth), (fifth, sixth) = found
    assert first > third > fifth > 0
    assert second > fourth > sixth > 0


def test_the_terms_are_their_sums() -> None:
    """Image by image, source by source, in images of any shape."""
    own = generator(4)
    weights, ideal_weights = (torch.rand(3, 5, generator=own, dtype=torch.float64) for _ in range(2))
    denoised, ideal = (torch.randn(3, 5, 2, 4, generator=own, dtype=torch.float64) for _ in range(2))
    compartments, by_weights = torch.zeros(5, dtype=torch.float64), torch.zeros(5, 2, 4, dtype=torch.float64)
    for b in range(5):
        for i in range(3):
            compartments[b] += weights[i, b] * (denoised[i, b] - ideal[i, b]).square().sum().sqrt()
            by_weights[b] += (weights[i, b] - ideal_weights[i, b]) * ideal[i, b]
    torch.testing.assert_close(compartments_term(weights, denoised, ideal), compartments)
    expected = by_weights.square().sum((1, 2)).sqrt()
    torch.testing.assert_close(weights_term(weights, ideal_weights, ideal), expected)
