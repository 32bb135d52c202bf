"""Games. Oracles: the axioms of Shapley values, all permutations one by one, additive games, and counted errors."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.shapley import (
    MOST_PLAYERS,
    Game,
    coalitions,
    leave_one_out,
    sampled_shapley_values,
    shapley_values,
)


def tabled(value: Tensor) -> Game:
    """Return the game that has a value [2^player, ...] for every coalition."""

    def game(members: Tensor) -> Tensor:
        return value[(members.long() * 2 ** torch.arange(members.shape[1])).sum(1)]

    return game


@st.composite
def games(draw: st.DrawFn, most: int = 5) -> tuple[int, Tensor]:
    """Draw a number of players and the values of all their coalitions."""
    players = draw(st.integers(1, most))
    values = draw(st.lists(st.floats(-100, 100, width=32), min_size=2**players, max_size=2**players))
    return players, torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=0, atol=tolerance)


def by_permutations(value: Tensor, players: int) -> Tensor:
    """Return the mean of what each player adds, over all orders in which they may come."""
    total = torch.zeros(players, dtype=torch.float64)
    for order in itertools.permutations(range(players)):
        coalition = 0
        for player in order:
            total[player] += value[coalition | 1 << player] - value[coalition]
            coalition |= 1 << player
    return total / math.factorial(players)


def test_coalitions_are_numbered_by_their_bits() -> None:
    assert coalitions(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
    assert coalitions(5).long().mul(2 ** torch.arange(5)).sum(1).tolist() == list(range(32))


@given(games())
def test_values_are_those_of_all_permutations(drawn: tuple[int, Tensor]) -> None:
    players, value = drawn
    close(shapley_values(tabled(value), players), by_permutations(value, players))


@given(games())
def test_efficiency(drawn: tuple[int, Tensor]) -> None:
    players, value = drawn
    close(shapley_values(tabled(value), players).sum(), value[-1] - value[0])
    drawn_values = sampled_shapley_values(tabled(value), players, 3, torch.Generator().manual_seed(0))
    close(drawn_values.value.sum(), value[-1] - value[0])


@given(games(), st.data())
def test_symmetry(drawn: tuple[int, Tensor], data: st.DataObject) -> None:
    """A game that does not change when two players change places gives both the same."""
    players, value = drawn
    a, b = (data.draw(st.integers(0, players - 1)) for _ in range(2))
    members = coalitions(players)
    swapped = members.clone()
    swapped[:, [a, b]] = members[:, [b, a]]
    symmetric = (tabled(value)(members) + tabled(value)(swapped)) / 2
    phi = shapley_values(tabled(symmetric), players)
    close(phi[a], phi[b])


@given(games(), st.data())
def test_a_dummy_gets_what_it_is_worth_alone(drawn: tuple[int, Tensor], data: st.DataObject) -> None:
    players, value = drawn
    dummy, worth = data.draw(st.integers(0, players - 1)), data.draw(st.floats(-10, 10))
    members = coalitions(players)
    others = members.clone()
    others[:, dummy] = False
    game = tabled(tabled(value)(others) + worth * members[:, dummy])
    close(shapley_values(game, players)[dummy], torch.tensor(worth))
    close(leave_one_out(game, players)[dummy], torch.tensor(worth))


@given(games(), st.data())
def test_additivity_and_scale(drawn: tuple[int, Tensor], data: st.DataObject) -> None:
    players, value = drawn
    other = torch.tensor(data.draw(st.lists(st.floats(-100, 100), min_size=2**players, max_size=2**players)))
    total = shapley_values(tabled(value - 3 * other), players)
    close(total, shapley_values(tabled(value), players) - 3 * shapley_values(tabled(other), players), 1e-3)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.floats(-100, 100))
def test_additive_games_are_recovered_exactly(worth: list[float], nobody: float) -> None:
    own = torch.tensor(worth, dtype=torch.float64)

    def game(members: Tensor) -> Tensor:
        return nobody + members.double() @ own

    close(shapley_values(game, len(own)), own)
    close(leave_one_out(game, len(own)), own)
    drawn = sampled_shapley_values(game, len(own), 2, torch.Generator().manual_seed(0))
    close(drawn.value, own)
    close(drawn.standard_error, torch.zeros_like(own))


@settings(max_examples=20)
@given(games())
def test_leave_one_out_by_hand(drawn: tuple[int, Tensor]) -> None:
    players, value = drawn
    expected = [value[-1] - value[2**players - 1 - 2**player] for player in range(players)]
    close(leave_one_out(tabled(value), players), torch.stack(expected))


def test_many_games_at_once_are_each_their_own() -> None:
    value = torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = [
        shapley_values(tabled(value), 4),
        leave_one_out(tabled(value), 4),
        sampled_shapley_values(tabled(value), 4, 5, torch.Generator().manual_seed(1)).value,
    ]
    for k, j in itertools.product(range(2), range(3)):
        own = tabled(value[:, k, j])
        close(together[0][:, k, j], shapley_values(own, 4))
        close(together[1][:, k, j], leave_one_out(own, 4))
        close(together[2][:, k, j], sampled_shapley_values(own, 4, 5, torch.Generator().manual_seed(1)).value)


def test_sampled_values_are_within_their_stated_error() -> None:
    """300 games of random values: the error in standard errors has the spread of a normal number, in 90 pairs."""
    value = torch.randn(64, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampled_shapley_values(tabled(value), 6, 90, torch.Generator().manual_seed(1))
    z = (drawn.value - shapley_values(tabled(value), 6)) / drawn.standard_error
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.15)
    assert float((z.abs() < 1.96).double().mean()) > 0.93
    assert float(z.abs().max()) < 5


def test_the_error_falls_with_the_root_of_the_pairs_and_twelve_players_are_exact() -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2**MOST_PLAYERS, 4, generator=g, dtype=torch.float64)
    few, many = (
        sampled_shapley_values(tabled(value), MOST_PLAYERS, pairs, torch.Generator().manual_seed(1))
        for pairs in (50, 800)
    )
    assert float((many.standard_error / few.standard_error).mean()) == pytest.approx(1 / 4, rel=0.15)
    z = (many.value - shapley_values(tabled(value), MOST_PLAYERS)) / many.standard_error
    assert float(z.abs().max()) < 4.5


def test_what_cannot_be_computed_is_refused() -> None:
    value = torch.zeros(2)
    with pytest.raises(ValueError, match="exact values are of 1 to 12 players, not 13"):
        shapley_values(tabled(value), 13)
    with pytest.raises(ValueError, match="at least 2 pairs of permutations, not 1"):
        sampled_shapley_values(tabled(value), 1, 1, torch.Generator())


def test_a_pair_of_orders_is_exact_for_games_of_two() -> None:
    """Of two players each comes before the other in one of the two orders, so what they make together is halved."""
    together = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def game(members: Tensor) -> Tensor:
        s = members.double()
        return torch.einsum("ci,ij,cj->c", s, together, s)

    found = sampled_shapley_values(game, 6, 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.value, (together + together.T).sum(1) / 2)
    torch.testing.assert_close(found.value, shapley_values(game, 6))
    assert float(found.standard_error.max()) < 1e-12


def test_the_standard_error_is_that_of_a_mean_of_pairs() -> None:
    """Oracle: over many draws, the mean square of the error is that of the values themselves."""

    def game(members: Tensor) -> Tensor:
        return (members.sum(1) >= 2).double() * members[:, 0].double() * (1 - 0.5 * members[:, 1].double())

    true, g = shapley_values(game, 4), torch.Generator().manual_seed(0)
    runs = [sampled_shapley_values(game, 4, 2, g) for _ in range(2000)]
    spread = torch.stack([one.value - true for one in runs]).square().mean(0)
    said = torch.stack([one.standard_error for one in runs]).square().mean(0)
    torch.testing.assert_close(said, spread, rtol=0.15, atol=1e-6)
