"""What a private source releases: sensitivity over all neighbours, noise of every number, and what is estimated."""

import math

import pytest
import torch
from torch import Tensor

from cdm_lightning import private_gaussians
from cdm_lightning.gaussian_mechanism import composed
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.private_gaussians import Frame, Released, fit_private, release
from cdm_lightning.released_statistics import (
    MOMENTS_SENSITIVITY,
    SUMS_SENSITIVITY,
    Cells,
    Moments,
    Noise,
    Sums,
    moments_of,
    release_moments,
    release_sums,
    sums_of,
)

SHAPE = (1, 3, 4)
DIMENSION = 12
EXACT = 1e9  # a mu with which there is hardly noise


def ordinary(seed: int) -> Noise:
    """Return noise of an ordinary generator: the release is then no secret."""
    generator = torch.Generator().manual_seed(seed)
    return lambda count: torch.randn(count, generator=generator, dtype=torch.float64)


def images(n: int, seed: int = 0) -> Tensor:
    """Return n images [n, 12] of two groups, some of them far out."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, DIMENSION, generator=generator, dtype=torch.float64)
    drawn[::5] *= 4
    drawn[::2, :3] += 2
    return drawn


def frame(public: int = 600) -> Frame:
    flat = images(public, seed=9)
    return Frame.of(Gaussians.fit(flat.reshape(-1, *SHAPE), seed=0, rank=6, clusters=2))


CELLS = Cells(images(3, seed=5), radius=2.5)
DIRECTIONS = torch.linalg.qr(images(DIMENSION, seed=3)).Q[:, :5]


@pytest.mark.parametrize("directions", [None, DIRECTIONS])
def test_no_neighbour_moves_a_release_by_more_than_its_sensitivity(directions: Tensor | None) -> None:
    """All neighbours of a small data set by removal, and by adding images that go as far as they can."""
    flat = images(12)
    far = 100 * torch.cat([DIRECTIONS.T, -DIRECTIONS.T, images(5, seed=8)])
    neighbours = [torch.cat([flat[:k], flat[k + 1 :]]) for k in range(len(flat))]
    neighbours += [torch.cat([flat, one[None]]) for one in far]
    for sums, sensitivity in (
        (lambda x: sums_of(x, CELLS), SUMS_SENSITIVITY),
        (lambda x: moments_of(x, CELLS, 4.0, directions), MOMENTS_SENSITIVITY),
    ):
        moved = torch.stack([(sums(other) - sums(flat)).norm() for other in neighbours])
        assert float(moved.max()) <= sensitivity * (1 + 1e-12)
        assert float(moved.max()) > 0.95 * sensitivity, "the bound is nearly reached: no noise is wasted"


def test_sums_are_those_of_a_slow_count() -> None:
    flat, slow = images(40), torch.zeros(3, 1 + DIMENSION, dtype=torch.float64)
    second, energy = torch.zeros(DIMENSION, DIMENSION, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for x in flat:
        k = min(range(3), key=lambda k: float((x - CELLS.centre[k]).norm()))
        y = x - CELLS.centre[k]
        energy[k] += min(float(y.norm()) ** 2, 16.0)
        y = y * min(1.0, CELLS.radius / float(y.norm()))
        slow[k, 0] += 1
        slow[k, 1:] += y
        second += torch.outer(y, y)
    sums = release_sums(flat, CELLS, EXACT, ordinary(0))
    moments = release_moments(flat, CELLS, 4.0, None, EXACT, ordinary(0))
    for found in (sums, moments):
        torch.testing.assert_close(found.count, slow[:, 0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.sum, slow[:, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(moments.energy, energy, atol=1e-5, rtol=0)
    torch.testing.assert_close(moments.moment, second, atol=1e-5, rtol=0)
    along = release_moments(flat, CELLS, 4.0, DIRECTIONS, EXACT, ordinary(0))
    torch.testing.assert_close(along.moment, DIRECTIONS.T @ second @ DIRECTIONS, atol=1e-5, rtol=0)


def test_the_noise_is_what_it_is_said_to_be() -> None:
    """Without images a release is its noise: of deviation sensitivity / mu in units of the sums."""
    mu, nothing = 0.5, torch.zeros(0, DIMENSION, dtype=torch.float64)
    noise = ordinary(1)
    drawn = [release_moments(nothing, CELLS, 4.0, None, mu, noise) for _ in range(400)]
    half = torch.stack([one.moment[~torch.eye(DIMENSION, dtype=torch.bool)] for one in drawn]) * math.sqrt(2)
    for numbers, deviation in (
        (torch.stack([one.count for one in drawn]), drawn[0].count_noise),
        (torch.stack([one.sum for one in drawn]), drawn[0].sum_noise),
        (torch.stack([one.energy for one in drawn]), drawn[0].energy_noise),
        (torch.stack([one.moment.diagonal() for one in drawn]), drawn[0].moment_noise),
        (half, drawn[0].moment_noise),
    ):
        assert float(numbers.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * numbers.numel()) + 0.01)
    assert drawn[0].count_noise == pytest.approx(MOMENTS_SENSITIVITY / mu / 0.3)
    assert torch.equal(drawn[0].moment, drawn[0].moment.T)


def test_all_releases_together_are_of_the_mu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    for name, place in (("release_sums", 2), ("release_moments", 4)):
        original = getattr(private_gaussians, name)

        def noting(*arguments, original=original, place=place):  # type: ignore[no-untyped-def]
            spent.append(arguments[place])
            return original(*arguments)

        monkeypatch.setattr(private_gaussians, name, noting)
    release(images(50), frame(), 1.7, ordinary(0), 4)
    assert len(spent) == 4
    assert composed(spent) == pytest.approx(1.7)


def test_without_noise_the_estimate_is_mean_and_covariance() -> None:
    """Of one Gaussian and images that reach no radius: against the moments of the images."""
    flat = (
        0.3
        * torch.randn(5000, DIMENSION, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        * torch.linspace(1, 0.2, DIMENSION)
    )
    form, n = fit_private(flat.reshape(-1, *SHAPE), frame(), mu=EXACT, noise=ordinary(0), rank=11, clusters=1)
    assert n == 5000
    torch.testing.assert_close(form.mean[0], flat.mean(0), atol=1e-4, rtol=0)
    basis, variance, rest = form.basis[0], form.variance[0], form.rest[0]
    outside = torch.eye(DIMENSION, dtype=torch.float64) - basis @ basis.T
    covariance = (basis * variance) @ basis.T + rest * outside
    torch.testing.assert_close(covariance, flat.T.cov(correction=0), atol=2e-3, rtol=0)


def test_noise_goes_down_with_the_images_and_up_with_privacy() -> None:
    """Distance of the estimated means from the exact one, averaged over draws."""

    def off(n: int, mu: float) -> float:
        flat, total = images(n), 0.0
        for seed in range(10):
            form, _ = fit_private(flat.reshape(-1, *SHAPE), frame(), mu=mu, noise=ordinary(seed), rank=6, clusters=2)
            total += float((form.log_share.exp() @ form.mean - flat.mean(0)).norm())
        return total / 10

    assert off(20, 1.0) > off(200, 1.0) > off(2000, 1.0)
    assert off(200, 0.2) > off(200, 1.0) > off(200, 5.0)


@pytest.mark.parametrize("n", [0, 1, 30])
@pytest.mark.parametrize("directions", [1024, 5])
def test_whatever_the_noise_does_it_is_a_mixture(n: int, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_gaussians, "MOST_DIRECTIONS", directions)
    for seed in range(5):
        form, released = fit_private(
            images(n).reshape(-1, *SHAPE), frame(), mu=0.3, noise=ordinary(seed), rank=4, clusters=10
        )
        assert released >= 1
        assert form.mean.shape == (8, DIMENSION)
        assert float(form.log_share.exp().sum()) == pytest.approx(1.0)
        assert float(form.rest.min()) > 0
        assert bool((form.variance >= form.rest[:, None]).all())
        torch.testing.assert_close(form.basis[3].T @ form.basis[3], torch.eye(4, dtype=torch.float64))


def test_a_rank_above_what_was_released_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it composes with forms of that rank; oracle: the form of the released rank."""
    monkeypatch.setattr(private_gaussians, "MOST_DIRECTIONS", 5)
    x, sigma = images(7, seed=2).reshape(-1, *SHAPE), torch.full((7,), 0.3, dtype=torch.float64)
    form, same = (
        fit_private(images(90).reshape(-1, *SHAPE), frame(), mu=1.0, noise=ordinary(1), rank=rank, clusters=2)[0]
        for rank in (8, 5)
    )
    assert form.basis.shape == (2, DIMENSION, 8)
    torch.testing.assert_close(form.log_density(x, sigma), same.log_density(x, sigma))
    torch.testing.assert_close(form.denoise(x, sigma), same.denoise(x, sigma))


def test_the_estimate_sees_only_what_was_released() -> None:
    """The noise alone, from a frame alone, is the same whatever is around it; images only come in by their sums."""
    one, two = (
        fit_private(images(40).reshape(-1, *SHAPE)[order], frame(), mu=1.0, noise=ordinary(3), rank=4, clusters=4)[0]
        for order in (torch.arange(40), torch.arange(40).flip(0))
    )
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.variance, two.variance)


def test_a_pixel_that_is_the_same_in_all_of_public_does_no_harm() -> None:
    """White borders, and as many directions as pixels: the rest of `public`'s Gaussians is nothing there."""
    public, own = (images(60, seed).reshape(-1, *SHAPE) for seed in (3, 4))
    public[:, 0, 0] = own[:, 0, 0] = -1.0
    constant = Frame.of(Gaussians.fit(public, seed=0, rank=DIMENSION - 1, clusters=2))
    assert float(constant.within.diagonal().min()) < 1e-12, "or this shows nothing"
    form, _ = fit_private(own, constant, mu=2.0, noise=ordinary(0), rank=6, clusters=2)
    assert all(bool(tensor.isfinite().all()) for tensor in form.tensors().values())


def test_numbers_of_images_are_weighed_by_their_variances() -> None:
    """Oracle: by hand. A sum of four counts of deviation 10 has the variance 400, a single count of 10 100."""
    zero = torch.zeros(1)
    sums = Sums(torch.tensor([100.0]), zero, 10.0, 1.0)
    moments = Moments(torch.tensor([50.0] * 4), zero, 10.0, 1.0, zero, zero, 1.0, 1.0)
    assert Released((sums,), Cells(zero, 1.0), moments).n == 120  # (4 * 100 + 200) / 5
