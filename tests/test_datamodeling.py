"""Datamodeling scores. Oracles: additive worth, Spearman's own definition by SciPy, constants."""

import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.datamodeling import lds, mean_with_interval, rank_correlation
from cdm_lightning.shapley import coalitions


def test_rank_correlation_is_spearmans_with_ties() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (9, 5), generator=g) for _ in range(2))
    expected = [float(spearmanr(a[:, k], b[:, k]).statistic) for k in range(5)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, torch.ones(9, 5)).tolist() == [0.0] * 5


def test_credits_of_an_additive_worth_have_the_score_one_and_their_negatives_minus_one() -> None:
    credit = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    members = coalitions(4)[1:]
    worth = 3 + 2 * members.double() @ credit
    assert lds(worth, members, credit).tolist() == pytest.approx([1.0] * 6)
    assert lds(worth, members, -credit).tolist() == pytest.approx([-1.0] * 6)


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean, low, high = mean_with_interval(values, 0)
    assert mean == pytest.approx(float(values.mean()))
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)
