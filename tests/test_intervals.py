"""Intervals. Oracles: closed forms of Gaussians over many draws, scipy, loops over pairs, limits."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm, sem
from torch import Tensor

from cdm_lightning.feature_sums import FeatureSums
from cdm_lightning.intervals import (
    HalfSamples,
    exact_upper,
    mean_interval,
    ratio_interval,
    score_interval,
    share_interval,
)
from cdm_lightning.metrics import frechet_distance
from cdm_lightning.resampled_scores import frechet_of_features, frechet_replicates, kid_replicates
from tests.test_metrics import normal

SCALE, SHIFT = 1.5, 1.0
FRECHET = 2 * (SHIFT**2 + (SCALE - 1) ** 2)  # of N(SHIFT, SCALE^2 I) and N(0, I) in two dimensions


def two_laws(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return SCALE * normal(n, 2, 2 * seed) + SHIFT, normal(n, 2, 2 * seed + 1)


def frechet_intervals(n: int, draws: int) -> list[tuple[float, float]]:
    found = []
    for seed in range(draws):
        generated, reference = two_laws(n, seed)
        halves = HalfSamples.draw(n, n, seed, repeats=60)
        own = score_interval(
            frechet_of_features(generated, reference), frechet_replicates(generated, reference, halves)
        )
        found.append((own.low, own.high))
    return found


def test_halves_are_drawn_without_replacement_from_the_seed() -> None:
    halves = HalfSamples.draw(9, 6, seed=3, repeats=50)
    assert halves.generated.shape == (50, 4)
    assert halves.reference.shape == (50, 3)
    assert all(len(set(row)) == 4 for row in halves.generated.tolist())
    assert sorted(set(halves.generated.flatten().tolist())) == list(range(9))
    again, other = HalfSamples.draw(9, 8, seed=3, repeats=50), HalfSamples.draw(9, 6, seed=4, repeats=50)
    assert torch.equal(again.generated, halves.generated)
    assert not torch.equal(other.generated, halves.generated)


def test_the_interval_of_a_frechet_distance_holds_the_true_one() -> None:
    found = frechet_intervals(300, draws=100)
    assert 0.89 <= np.mean([low <= FRECHET <= high for low, high in found]) <= 0.99


def test_the_interval_shrinks_with_the_root_of_the_number() -> None:
    few, many = (np.mean([high - low for low, high in frechet_intervals(n, draws=12)]) for n in (100, 900))
    assert few / many == pytest.approx(3, rel=0.15)


def test_the_standard_error_of_kid_is_its_deviation_over_draws() -> None:
    """Not how often the interval holds: KID of so few is skewed, and a symmetric interval holds it less often."""
    values, errors = [], []
    everything = HalfSamples(torch.arange(80)[None], torch.arange(80)[None])
    for seed in range(100):
        generated, reference = normal(80, 3, 2 * seed, 1.0), normal(80, 3, 2 * seed + 1)
        values.append(float(kid_replicates(generated, reference, everything)))
        halves = HalfSamples.draw(80, 80, seed, repeats=100)
        errors.append(float(kid_replicates(generated, reference, halves).std()))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


@pytest.mark.parametrize("rows", [1024, 3])
def test_kid_of_halves_is_the_mean_over_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm_lightning.resampled_scores.ROWS", rows)
    generated, reference = normal(8, 3, 0, 0.5), normal(10, 3, 1)
    halves = HalfSamples.draw(8, 10, seed=0, repeats=4)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / 3 + 1) ** 3)

    def within(x: Tensor) -> float:
        return float(np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]))

    slow = []
    for one, other in zip(halves.generated, halves.reference, strict=True):
        x, y = generated[one], reference[other]
        slow.append(within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y]))
    np.testing.assert_allclose(kid_replicates(generated, reference, halves).numpy(), slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "m", "dimension"), [(60, 80, 8), (80, 60, 8), (5, 60, 40), (30, 6, 40), (30, 50, 64)])
def test_the_fast_frechet_distance_is_torch_fidelitys(n: int, m: int, dimension: int) -> None:
    spread = torch.arange(1, dimension + 1) ** -0.5
    generated, reference = 1.3 * spread * normal(n, dimension, 0, 0.2), spread * normal(m, dimension, 1)
    expected = frechet_distance(FeatureSums.of(generated), FeatureSums.of(reference))
    assert frechet_of_features(generated, reference) == pytest.approx(expected, rel=1e-6)
    assert frechet_of_features(reference, generated) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "dimension"), [(20, 20, 2), (20, 60, 2), (60, 14, 30), (14, 60, 30), (80, 90, 30)])
def test_the_frechet_distance_of_a_half_is_that_of_its_images(n: int, m: int, dimension: int) -> None:
    generated, reference = normal(n, dimension, 0, 5.2), 2 * normal(m, dimension, 1, 2.5)
    halves = HalfSamples.draw(n, m, seed=0, repeats=3)
    expected = [
        frechet_distance(FeatureSums.of(generated[one]), FeatureSums.of(reference[other]))
        for one, other in zip(halves.generated, halves.reference, strict=True)
    ]
    assert frechet_replicates(generated, reference, halves).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_score_that_does_not_vary_has_no_width() -> None:
    own = score_interval(3.0, torch.full((50,), 7.0, dtype=torch.float64))
    assert (own.value, own.low, own.high) == (3.0, 3.0, 3.0)


def test_the_ratio_to_itself_is_one_without_width() -> None:
    replicates = 1 + torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = ratio_interval(2.5, 2.5, replicates, replicates)
    assert (own.value, own.low, own.high) == (1.0, 1.0, 1.0)


def test_the_ratio_to_a_multiple_of_itself_has_no_width() -> None:
    replicates = 1 + torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = ratio_interval(2.5, 5.0, replicates, 2 * replicates)
    assert (own.value, own.low, own.high) == (0.5, pytest.approx(0.5), pytest.approx(0.5))


def test_the_paired_ratio_is_narrower_than_unpaired_ones() -> None:
    generated, reference = two_laws(200, 0)
    other = generated + 0.1 * normal(200, 2, 9)
    halves, unlike = HalfSamples.draw(200, 200, seed=0), HalfSamples.draw(200, 200, seed=1)
    base = frechet_replicates(generated, reference, halves)
    values = frechet_of_features(other, reference), frechet_of_features(generated, reference)
    paired = ratio_interval(*values, frechet_replicates(other, reference, halves), base)
    unpaired = ratio_interval(*values, frechet_replicates(other, reference, unlike), base)
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize(("count", "n"), [(0, 64), (1, 3), (37, 100), (64, 64)])
def test_the_interval_of_a_share_is_scipys(count: int, n: int) -> None:
    own, expected = share_interval(count, n), binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert own.value == count / n
    assert (own.low, own.high) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))
    assert math.isclose(own.low, 0, abs_tol=1e-12) == (count == 0)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = 2 + 3 * normal(50, 1, 7).flatten().double()
    found = mean_interval(values)
    expected = norm.interval(0.95, loc=np.mean(values.numpy()), scale=sem(values.numpy()))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)
    assert found.value == pytest.approx(float(values.mean()))


def test_all_of_n_have_the_upper_end_one() -> None:
    assert exact_upper(7, 7, 0.05) == 1.0
