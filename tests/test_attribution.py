"""Credit. Oracles: Bayes' rule on dense normal laws, averaged over the same draws, and matrices by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from cdm_lightning.attribution import (
    DRAWS,
    accuracy,
    attribution_matrix,
    calibration_error,
    credits_of,
    cross_entropy,
    images_credited,
    is_informative,
    judge,
    mean_credit,
    reliability,
    weights_at,
)
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.seeding import generator

SHAPE = (1, 2, 2)
PRIOR = {"a": 0.2, "b": 0.5, "c": 0.3}


def sources(dtype: torch.dtype = torch.float64) -> dict[str, Gaussians]:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, *SHAPE, generator=g, dtype=torch.float64)
    images = 0.3 * means + 0.4 * torch.randn(3, 30, *SHAPE, generator=g, dtype=torch.float64)
    return {source: Gaussians.fit(images[i].to(dtype), seed=0, rank=3) for i, source in enumerate(PRIOR)}


def composed(parts: dict[str, Gaussians], prior: dict[str, float] = PRIOR) -> ComposedDenoiser:
    evidence = {source: GaussianEvidence(part, Calibration.none(), 0.0) for source, part in parts.items()}
    return ComposedDenoiser({source: part.denoise for source, part in parts.items()}, evidence, prior, "posterior")


def images(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.5 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_credits_are_the_analytic_posterior_averaged_over_the_draws(sigma: float) -> None:
    parts, x_0 = sources(), images(6)
    eye = torch.eye(4, dtype=torch.float64)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for draw in range(16):
        x = x_0 + sigma * torch.randn(SHAPE, generator=generator(3, "credits", draw)).double()
        joint = []
        for source, part in parts.items():
            rest = part.rest[0] * eye
            dense = part.basis[0] @ torch.diag(part.variance[0] - part.rest[0]) @ part.basis[0].T + rest
            law = MultivariateNormal(part.mean[0], dense + sigma**2 * eye)
            joint.append(PRIOR[source] * law.log_prob(x.flatten(1)).exp())
        expected += torch.stack(joint) / torch.stack(joint).sum(0) / 16
    assert DRAWS == 16
    credit = credits_of(composed(parts), x_0, sigma, seed=3)
    torch.testing.assert_close(credit.double(), expected, rtol=0, atol=1e-6)


def test_columns_sum_to_one() -> None:
    credit = credits_of(composed(sources(torch.float32)), images(6, torch.float32), 0.2)
    assert credit.shape == (3, 6)
    assert (credit >= 0).all()
    torch.testing.assert_close(credit.sum(0), torch.ones(6), rtol=0, atol=1e-6)


def test_credits_of_an_image_do_not_depend_on_the_others_nor_on_global_state() -> None:
    model, x_0 = composed(sources()), images(6)
    together = credits_of(model, x_0, 0.3)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    alone = torch.cat([credits_of(model, x_0[k : k + 1], 0.3) for k in range(6)], dim=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert not torch.allclose(credits_of(model, x_0, 0.3, seed=1), together, atol=1e-6)


def test_credits_of_equal_sources_are_the_prior() -> None:
    part = sources()["a"]
    credit = credits_of(composed(dict.fromkeys(PRIOR, part)), images(4), 0.3)
    expected = torch.tensor(list(PRIOR.values()))[:, None].expand(3, 4)
    torch.testing.assert_close(credit, expected.to(credit), rtol=0, atol=1e-6)


WEIGHTS = [torch.tensor([[0.5, 1.0], [0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.0], [0.75, 0.5, 1.0]])]


def test_attribution_matrix_by_hand() -> None:
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    torch.testing.assert_close(attribution_matrix(WEIGHTS), expected, rtol=0, atol=1e-7)


def test_cross_entropy_by_hand_averages_over_images_not_over_sources() -> None:
    expected = -(math.log(0.5) + math.log(1.0) + math.log(0.75) + math.log(0.5) + math.log(1.0)) / 5
    assert cross_entropy(WEIGHTS) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_limits() -> None:
    even = [torch.full((4, 3), 0.25) for _ in range(4)]
    assert cross_entropy(even) == pytest.approx(math.log(4), rel=1e-6)
    assert cross_entropy([torch.eye(4)[:, i : i + 1] for i in range(4)]) == 0.0
    wrong = [torch.eye(4)[:, (i + 1) % 4 : (i + 1) % 4 + 1] for i in range(4)]
    assert math.isfinite(cross_entropy(wrong))
    assert cross_entropy(wrong) > 60


def test_credits_are_informative_if_better_than_knowing_nothing() -> None:
    assert is_informative(math.log(5) - 1e-5, math.log(5))
    assert not is_informative(math.log(5), math.log(5))
    assert not is_informative(math.nan, math.log(5))


@pytest.mark.parametrize("images", [(60, 6), (6, 6), (6, 60)])
@pytest.mark.parametrize("shares", [(10 / 11, 1 / 11), (0.5, 0.5)])
def test_weights_that_are_the_prior_whatever_the_image_are_not_informative(
    images: tuple[int, int], shares: tuple[float, float]
) -> None:
    """The larger a source is, the more of its images are held out: then the prior alone is better than ln N."""
    prior = torch.tensor(shares)
    judged = judge([prior[:, None].expand(2, n) for n in images], prior)
    assert not judged.informative
    assert judged.knowing_nothing == pytest.approx(min(math.log(2), judged.cross_entropy), abs=1e-6)
    assert judge([torch.eye(2)[:, [true] * n] for true, n in enumerate(images)], prior).informative


HAND = [torch.tensor([[0.9, 0.4], [0.1, 0.6]]), torch.tensor([[0.7, 0.2, 0.3], [0.3, 0.8, 0.7]])]


def test_accuracy_and_mean_credit_by_hand() -> None:
    assert accuracy(HAND) == pytest.approx(3 / 5)
    assert mean_credit(HAND) == pytest.approx((0.9 + 0.4 + 0.3 + 0.8 + 0.7) / 5)


def test_calibration_error_by_hand() -> None:
    """Of 15 bins: 0.9 right; 0.6 wrong; 0.7 wrong and 0.7 right share a bin; 0.8 right."""
    expected = (abs(1 - 0.9) + abs(0 - 0.6) + abs((0 - 0.7) + (1 - 0.7)) + abs(1 - 0.8)) / 5
    assert calibration_error(HAND) == pytest.approx(expected, abs=1e-6)


def test_bins_by_hand_are_what_the_calibration_error_is_of() -> None:
    bins = reliability(HAND)
    assert [one.images for one in bins] == [1, 2, 1, 1]
    assert [one.confidence for one in bins] == pytest.approx([0.6, 0.7, 0.8, 0.9], abs=1e-6)
    assert [one.accuracy for one in bins] == [0, 0.5, 1, 1]
    gaps = sum(one.images * abs(one.accuracy - one.confidence) for one in bins)
    assert calibration_error(HAND) == pytest.approx(gaps / 5)


def test_weights_that_are_true_probabilities_are_calibrated() -> None:
    """Limit: images drawn from the mixture itself, judged by its own posterior."""
    g = torch.Generator().manual_seed(0)
    first = torch.rand(40000, generator=g, dtype=torch.float64)
    weights, true = torch.stack([first, 1 - first]), torch.rand(40000, generator=g, dtype=torch.float64) > first
    assert calibration_error([weights[:, ~true], weights[:, true]]) < 0.02
    assert calibration_error([weights[:, true], weights[:, ~true]]) > 0.4


def test_weights_at_a_level_are_the_composed_weights_of_noised_images() -> None:
    mixed, x_0 = composed(sources(torch.float32)), images(6, torch.float32)
    first, again, other = (weights_at(mixed, x_0, sigma) for sigma in (0.3, 0.3, 0.4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = torch.randn(x_0.shape, generator=generator(0, "weights", "0.3"))
    expected = mixed.weights(x_0 + 0.3 * noise, torch.full((6,), 0.3))
    torch.testing.assert_close(first, expected, rtol=0, atol=0)


def test_many_sources_have_twelve_images_each() -> None:
    assert [images_credited(n) for n in (1, 2, 5, 10, 11, 100)] == [64, 60, 24, 12, 12, 12]
