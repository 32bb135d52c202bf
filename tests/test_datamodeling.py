"""Datamodeling scores. Oracles: additive worth, Spearman's own definition by SciPy, constants, the exact game."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import coalition_prompts
from benchmarks.additive_orders import best_sums, orders
from benchmarks.attribution import Known, Said, agreement, ceilings, scores
from benchmarks.datamodeling import (
    additive_fit,
    lds,
    mean_with_interval,
    posterior_worth,
    rank_correlation,
    total_with_interval,
)
from cdm_lightning.coalitions import DensityGame
from cdm_lightning.credit_methods import CreditSettings, Method, credit, game_of
from cdm_lightning.shapley import coalitions, shapley_values
from tests.test_compartments import SHAPE, opened

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


def test_a_soft_maximum_is_the_logarithm_of_a_sum_so_some_sums_have_its_ranks_exactly() -> None:
    worth = (MEMBERS.double() @ (3 * numbers(5, 4)).exp()).log()
    assert lds(worth, MEMBERS, best_sums(worth)).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("players", "largest"), [(2, 3), (3, 7), (4, 10)])
def test_the_best_sums_are_those_of_a_grid_of_all_credits(players: int, largest: int) -> None:
    """Slow reference: whole numbers of both signs, large enough to have every order of two, three and four sources."""
    members = coalitions(players)[1:]
    worth = torch.cat([numbers(len(members), 2), numbers(len(members), 1).round()], 1)
    grid = torch.cartesian_prod(*[torch.arange(-largest, largest + 1)] * players).double()
    expected = [
        rank_correlation(one[:, None].expand(-1, len(grid)), members.double() @ grid.T).max() for one in worth.T
    ]
    assert lds(worth, members, best_sums(worth)).tolist() == pytest.approx([float(one) for one in expected])


def test_there_are_as_many_orders_without_ties_as_were_counted() -> None:
    """https://oeis.org/A009997, sums of two, three, four and five numbers of increasing size."""
    for players, expected in ((2, 1), (3, 2), (4, 14), (5, 516)):
        sums = orders(players) @ coalitions(players).float().T
        assert sum(len(row.unique()) == 2**players for row in sums) == expected
    with pytest.raises(ValueError, match="6 players"):
        orders(6)


def test_the_score_of_all_images_together_is_that_of_their_mean_worth() -> None:
    worth, said = numbers(31, 6), numbers(31, 6) + 0.5 * numbers(31, 12)[:, 6:]
    score, low, high = total_with_interval(worth, said, 0)
    assert score == pytest.approx(float(spearmanr(worth.sum(1), said.sum(1)).statistic))
    assert low < score <= high
    assert total_with_interval(worth, worth, 0) == pytest.approx([1.0] * 3)
    alike, other = (one[:, :1].expand(31, 6) for one in (worth, said))
    assert total_with_interval(alike, other, 0) == pytest.approx([float(rank_correlation(alike, other)[0])] * 3)


def test_posterior_credits_say_the_log_density_of_every_coalition() -> None:
    density, prior = 2 * numbers(6, 3), torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    worth = DensityGame(density, prior.log())(MEMBERS)
    share = (density[:-1] + prior.log()[:, None]).softmax(0)
    difference = worth - posterior_worth(share, prior, MEMBERS)
    assert torch.allclose(difference, difference[:1].expand_as(difference))


def test_who_says_the_worth_itself_has_the_score_one() -> None:
    worth, said = numbers(32, 4), Said(numbers(5, 4), 3 + 2 * numbers(32, 4)[1:], {})
    found = scores(Known.of_all(worth), said, 0)
    assert found["worth"] == found["total worth"] == pytest.approx([1.0] * 3)


def test_credits_that_know_an_additive_worth_have_the_score_one() -> None:
    worth = coalitions(5).double() @ numbers(5, 4)
    known = Known.of_all(worth)
    assert known.own is not None
    assert torch.allclose(known.own, shapley_values(lambda members: members.double() @ numbers(5, 4), 5))
    opposite = Known.of_all(-worth)
    found = ceilings(known, opposite, 0)
    together = found.pop("best sums, all images together")
    assert (together["total lds"][0], together["again"]["total lds"][0]) == pytest.approx((1.0, -1.0))
    for one in found.values():
        assert one["lds"] == pytest.approx([1.0] * 3)
        assert one["again"]["lds"] == pytest.approx([-1.0] * 3)
    assert found["truth's own shapley"]["spearman"] == pytest.approx([1.0] * 3)


def test_a_truth_of_six_coalitions_is_scored_on_these_alone() -> None:
    """The sums of its credits are right about the six, and about nothing else."""
    members, credit = coalition_prompts.members(), numbers(5, 4)
    assert members.sum(1).tolist() == [1, 2, 2, 3, 4, 5]
    place = (members.long() * torch.tensor([1, 2, 4, 8, 16])).sum(1)
    worth = numbers(32, 4)
    worth[place] = members.double() @ credit
    six = Known(members, worth[place])
    assert scores(six, Said(credit, worth[1:], {}), 0) == {
        name: pytest.approx([1.0] * 3) for name in ("lds", "total lds", "worth", "total worth")
    }
    assert agreement(six, Known.of_all(worth), 0) == {name: pytest.approx([1.0] * 3) for name in ("each", "together")}
    worth[place] *= -1
    assert agreement(Known.of_all(worth), six, 0) == {name: pytest.approx([-1.0] * 3) for name in ("each", "together")}


@pytest.mark.parametrize("method", ["gaussians", "shapley", "loo"])
def test_what_a_method_says_is_what_attribute_says(method: Method) -> None:
    """Of coalitions too: the mean of its game over the draws, or the log density that its credits imply."""
    sources, settings = opened(sources=["none", "plain"]), CreditSettings(method, draws=4)
    x_0 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    said, members = Said.of(sources, x_0, settings), coalitions(2)[1:]
    torch.testing.assert_close(said.value, credit(sources, x_0, settings).value)
    assert said.worth is not None
    if method == "gaussians":
        expected = posterior_worth(said.value, torch.tensor(list(sources.prior().values())), members)
    else:
        expected = torch.stack([game_of(sources, x_0, settings)(members)[:, draw] for draw in range(4)]).mean(0)
    torch.testing.assert_close(said.worth, expected)
