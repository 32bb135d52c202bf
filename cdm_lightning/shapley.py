"""Credit in cooperative games: what each player adds to the value of coalitions. Knows no images, only games.

A game is a function v of coalitions, each a row of bools [coalition, player], to their values [coalition, ...]; any
further dimensions are games of their own, over the same players. Axioms of Shapley values: Shapley (1953).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Game = Callable[[Tensor], Tensor]
MOST_PLAYERS = 12  # of exact values: 4,096 coalitions
CHUNK = 256  # permutations whose coalitions are evaluated together


def coalitions(players: int) -> Tensor:
    """Return all coalitions, bool [2^players, player]: row r holds player i if bit i of r is set."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) % 2 == 1


def shapley_values(game: Game, players: int) -> Tensor:
    """Return phi_i = sum_S |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)) over all S without i: [player, ...].

    Raises:
        ValueError: there are more than `MOST_PLAYERS` players, or none.
    """
    if not 1 <= players <= MOST_PLAYERS:
        raise ValueError(f"exact values are of 1 to {MOST_PLAYERS} players, not {players}: draw permutations")
    members = coalitions(players)
    value, size, row = game(members), members.sum(1), torch.arange(len(members))
    share = torch.tensor([1 / (players * math.comb(players - 1, k)) for k in range(players)], dtype=torch.float64)
    values = []
    for player in range(players):
        without = row[~members[:, player]]
        gain = value[without + 2**player] - value[without]
        values.append(torch.einsum("s,s...->...", share[size[without]].to(gain), gain))
    return torch.stack(values)


def leave_one_out(game: Game, players: int) -> Tensor:
    """Return v(all) - v(all without i) for every player i: [player, ...]."""
    whole = torch.ones(1, players, dtype=torch.bool)
    value = game(torch.cat([whole, ~torch.eye(players, dtype=torch.bool)]))
    return value[:1] - value[1:]


@dataclass(frozen=True)
class SampledValues:
    """Shapley values from random permutations.

    Attributes:
        value: [player, ...], unbiased; over all players their sum is v(all) - v(nobody) exactly.
        standard_error: [player, ...], of the draw of the permutations alone, estimated from their pairs.
    """

    value: Tensor
    standard_error: Tensor


def sampled_shapley_values(game: Game, players: int, pairs: int, generator: torch.Generator) -> SampledValues:
    """Return the mean of what each player adds to those before it, over random permutations and their reverses.

    A permutation and its reverse are one draw (antithetic sampling: Mitchell et al. 2022, arXiv 2104.12199), so the
    standard error is that of a mean over independent pairs.

    Args:
        game: the game.
        players: their number.
        pairs: of permutations, at least 2.
        generator: on the CPU.

    Raises:
        ValueError: there are too few pairs.
    """
    if pairs < 2:
        raise ValueError(f"a standard error needs at least 2 pairs of permutations, not {pairs}")
    orders = torch.stack([torch.randperm(players, generator=generator) for _ in range(pairs)])
    means = [(_marginals(game, some) + _marginals(game, some.flip(1))) / 2 for some in orders.split(CHUNK)]
    gain = torch.cat(means)
    return SampledValues(gain.mean(0), gain.std(0) / math.sqrt(pairs))


def _marginals(game: Game, orders: Tensor) -> Tensor:
    """Return what each player adds to those before it [permutation, player, ...] in `orders` [permutation, place]."""
    permutations, players = orders.shape
    place = orders.argsort(1)
    members = place[:, None, :] < torch.arange(players + 1)[None, :, None]  # after 0, 1, ..., n players have come
    distinct, where = members.flatten(0, 1).unique(dim=0, return_inverse=True)
    value = game(distinct)[where].unflatten(0, (permutations, players + 1))
    gain: Tensor = value[:, 1:] - value[:, :-1]
    return gain[torch.arange(permutations)[:, None], place]
