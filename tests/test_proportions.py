"""The judge of sources. Oracles: mixtures of known proportions, scipy's chi-square, the inverse of a matrix."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cdm_lightning.proportions import SourceJudge, confusion_of, most_likely_proportions, p_value, proportions
from tests.test_metrics import normal

MEANS = {"a": -1.0, "b": 0.0, "c": 1.2}  # they overlap: a fifth to a half of every source is named wrongly
PRIOR = {"a": 0.5, "b": 0.3, "c": 0.2}


def features(source: str, n: int, seed: int) -> Tensor:
    return normal(n, 3, seed) * 0.9 + MEANS[source]


@pytest.fixture(scope="module")
def judge() -> SourceJudge:
    training = {source: features(source, 400, k) for k, source in enumerate(MEANS)}
    heldout = {source: features(source, 1000, 10 + k) for k, source in enumerate(MEANS)}
    return SourceJudge.fit(training, heldout)


def mixture(shares: dict[str, float], n: int, seed: int) -> Tensor:
    counts = np.random.default_rng(seed).multinomial(n, list(shares.values()))
    parts = [features(source, int(k), 100 * seed + i) for i, (source, k) in enumerate(zip(shares, counts, strict=True))]
    return torch.cat(parts)


def test_the_confusion_counts_every_held_out_image(judge: SourceJudge) -> None:
    assert judge.confusion.sum(1).tolist() == [1000, 1000, 1000]
    assert 0.5 < judge.accuracy < 0.95
    assert judge.accuracy == pytest.approx(float(judge.confusion.diagonal().sum() / 3000))


def test_the_confusion_is_a_count_of_pairs() -> None:
    true, named = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    assert confusion_of(true, named, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_samples_that_real_images_are_no_measure_of_are_judged_by_samples_of_each_source_alone(
    judge: SourceJudge,
) -> None:
    def sampled(n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw samples of a model that is wrong about every source in the same way, and their sources."""
        true = torch.from_numpy(np.random.default_rng(seed).choice(3, n, p=list(PRIOR.values())))
        return torch.stack(list(map(torch.tensor, MEANS.values())))[true][:, None] * 0.5 + 0.9 * normal(
            n, 3, seed
        ), true

    alone, true = sampled(4000, 2)
    confusion = confusion_of(true, judge.named(alone), 3)
    samples, _ = sampled(4000, 3)
    by_real, by_alone = (proportions(judge.named(samples), known, PRIOR) for known in (judge.confusion, confusion))
    assert (by_real.p_value < 1e-6, by_alone.p_value > 0.01) == (True, True)
    assert by_alone.distance < 0.05 < by_real.distance


def test_corrected_proportions_are_the_true_ones(judge: SourceJudge) -> None:
    true = {"a": 0.1, "b": 0.7, "c": 0.2}
    found = proportions(judge.named(mixture(true, 4000, 1)), judge.confusion, PRIOR)
    assert sum(found.counts.values()) == 4000
    assert sum(found.corrected.values()) == pytest.approx(1)
    for source, share in true.items():
        assert found.corrected[source] == pytest.approx(share, abs=0.04)
    assert abs(found.counts["b"] / 4000 - 0.7) > 0.08  # what the classifier names is not
    expected = sum(abs(found.corrected[source] - PRIOR[source]) for source in PRIOR) / 2
    assert found.distance == pytest.approx(expected)
    assert found.p_value < 1e-6


def test_the_p_value_of_the_truth_is_uniform() -> None:
    small = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rates = np.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.0, 0.3, 0.7]])
        confusion = np.stack([rng.multinomial(60, row) for row in rates])
        counts = rng.multinomial(100, np.array(list(PRIOR.values())) @ rates)
        prior = torch.tensor(list(PRIOR.values()), dtype=torch.float64)
        small.append(p_value(torch.tensor(counts).double(), torch.tensor(confusion).double(), prior) < 0.2)
    assert np.mean(small) == pytest.approx(0.2, abs=0.09)


def test_with_a_sure_judge_it_is_the_chi_square_test() -> None:
    counts, prior = torch.tensor([30.0, 50.0, 20.0]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    sure = 1e9 * torch.eye(3, dtype=torch.float64)
    assert p_value(counts, sure, prior) == pytest.approx(chisquare(counts, 100 * prior).pvalue, rel=1e-6)


def test_the_most_likely_proportions_undo_the_rates() -> None:
    rates = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]], dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(most_likely_proportions(1000 * p @ rates, rates), p, rtol=1e-4, atol=1e-6)


def test_a_source_that_is_never_named_has_no_share() -> None:
    found = most_likely_proportions(torch.tensor([10.0, 0.0]).double(), torch.eye(2).double() * 0.98 + 0.01)
    assert found.tolist() == pytest.approx([1, 0], abs=1e-3)


def test_the_unit_of_a_feature_does_not_matter() -> None:
    g = torch.Generator().manual_seed(0)
    x = {name: torch.randn(200, 3, generator=g) + centre for name, centre in (("a", -0.5), ("b", 0.5))}
    unit = torch.tensor([1.0, 1e-4, 1e4])
    one = SourceJudge.fit(x, x)
    other = SourceJudge.fit({k: v * unit for k, v in x.items()}, {k: v * unit for k, v in x.items()})
    torch.testing.assert_close(one.confusion, other.confusion)
    assert torch.equal(one.named(x["a"]), other.named(x["a"] * unit))
