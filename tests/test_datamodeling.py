"""Datamodeling scores. Oracles: additive worth, Spearman's own definition by SciPy, constants, the exact game."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import coalition_prompts
from benchmarks.attribution import Known, Said, agreement, ceilings, scores
from benchmarks.datamodeling import (
    additive_fit,
    best_additive,
    lds,
    mean_with_interval,
    posterior_worth,
    rank_correlation,
)
from cdm_lightning.coalitions import DensityGame
from cdm_lightning.shapley import coalitions, shapley_values

MEMBERS = coalitions(5)[1:]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


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


def test_the_additive_fit_of_an_additive_worth_is_its_credits() -> None:
    credit = numbers(5, 4)
    assert torch.allclose(additive_fit(7 + MEMBERS.double() @ credit, MEMBERS), credit)


def test_no_credits_score_more_than_the_best_that_are_found() -> None:
    """Limit: a soft maximum is the logarithm of a sum, so there are credits whose sums have its ranks exactly."""
    worth = (MEMBERS.double() @ (3 * numbers(5, 4)).exp()).log()
    assert float(lds(worth, MEMBERS, best_additive(worth, MEMBERS, 0)).min()) > 0.995
    diluted = worth - MEMBERS.sum(1, keepdim=True).double().log()
    best = lds(diluted, MEMBERS, best_additive(diluted, MEMBERS, 0))
    tried = [lds(diluted, MEMBERS, other) for other in numbers(200, 5, 4)]
    assert bool((best >= torch.stack(tried).amax(0)).all())
    assert bool((best >= lds(diluted, MEMBERS, additive_fit(diluted, MEMBERS))).all())


def test_posterior_credits_say_the_log_density_of_every_coalition() -> None:
    density, prior = 2 * numbers(6, 3), torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    worth = DensityGame(density, prior.log())(MEMBERS)
    share = (density[:-1] + prior.log()[:, None]).softmax(0)
    difference = worth - posterior_worth(share, prior, MEMBERS)
    assert torch.allclose(difference, difference[:1].expand_as(difference))


def test_who_says_the_worth_itself_has_the_score_one() -> None:
    worth, said = numbers(32, 4), Said(numbers(5, 4), 3 + 2 * numbers(32, 4)[1:], {})
    assert scores(Known.of_all(worth), said, 0)["worth"] == pytest.approx([1.0] * 3)


def test_credits_that_know_an_additive_worth_have_the_score_one() -> None:
    worth = coalitions(5).double() @ numbers(5, 4)
    known = Known.of_all(worth)
    assert known.own is not None
    assert torch.allclose(known.own, shapley_values(lambda members: members.double() @ numbers(5, 4), 5))
    found = ceilings(known, 0)
    assert all(one["lds"] == pytest.approx([1.0] * 3) for one in found.values())
    assert found["truth's own shapley"]["spearman"] == pytest.approx([1.0] * 3)


def test_a_truth_of_six_coalitions_is_scored_on_these_alone() -> None:
    """The sums of its credits are right about the six, and about nothing else."""
    members, credit = coalition_prompts.members(), numbers(5, 4)
    assert members.sum(1).tolist() == [1, 2, 2, 3, 4, 5]
    place = (members.long() * torch.tensor([1, 2, 4, 8, 16])).sum(1)
    worth = numbers(32, 4)
    worth[place] = members.double() @ credit
    six = Known(members, worth[place])
    assert scores(six, Said(credit, worth[1:], {}), 0) == {"lds": [1.0] * 3, "worth": [1.0] * 3}
    assert agreement(six, Known.of_all(worth), 0) == pytest.approx([1.0] * 3)
    worth[place] *= -1
    assert agreement(Known.of_all(worth), six, 0) == pytest.approx([-1.0] * 3)
