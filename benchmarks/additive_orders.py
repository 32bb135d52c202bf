"""Credits of the largest linear datamodeling score that there can be, for up to five sources.

Spearman's correlation asks for no more than the order in which sums of credits put the coalitions. There are finitely
many such orders. For credits 0 <= a_1 <= ... <= a_n they are those of whole numbers up to `LARGEST` (for five sources
4,772, of which 516 are without ties, as Fine and Gill 1976 counted, https://oeis.org/A009997; whole numbers up to 40
give no other). All other credits come from these by signs, and by naming the sources anew.
"""

import math
from functools import cache
from itertools import combinations_with_replacement, permutations

import torch
from torch import Tensor

from benchmarks.datamodeling import centred_ranks
from cdm_lightning.shapley import coalitions

LARGEST, MOST_PLAYERS = 30, 5


@cache
def orders(players: int) -> Tensor:
    """Return credits [order, player], not negative and not falling, one for each order of the sums of all coalitions.

    The order of two sums depends on players that are in one of them alone: on the sign of a . x, x in {-1, 0, 1}^n.
    """
    if not 2 <= players <= MOST_PLAYERS:
        raise ValueError(f"{players} players; the orders of 2 to {MOST_PLAYERS} are known")
    credit = torch.tensor(list(combinations_with_replacement(range(LARGEST + 1), players)), dtype=torch.float32)
    difference = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * players)
    sign = (credit @ difference[: len(difference) // 2].T).sign().to(torch.int8)
    _, order = sign.unique(dim=0, return_inverse=True)
    first = torch.full((int(order.max()) + 1,), len(credit)).scatter_reduce(0, order, torch.arange(len(credit)), "amin")
    return credit[first]


def best_sums(worth: Tensor) -> Tensor:
    """Return credits [source, image] that have the largest linear datamodeling score of all; of equal ones, the first.

    Args:
        worth: of all coalitions but nobody [coalition, image], in the order of `coalitions`, of two sources at least.
    """
    players = (len(worth) + 1).bit_length() - 1
    everybody, credit = coalitions(players), orders(players)
    truth, images = centred_ranks(worth), worth.shape[1]
    found, score = torch.zeros(players, images), torch.full((images,), -math.inf).double()
    for negative in everybody:
        signed = torch.where(negative, -credit, credit)
        rank = centred_ranks(everybody[1:].float() @ signed.T)
        rank = rank / rank.norm(dim=0).clamp_min(1e-12)  # of the truth the length means nothing
        for order in permutations(range(players)):
            named = numbers(everybody[1:, list(order)]) - 1
            here, first = (rank.T @ truth[named]).max(0)
            better = here > score
            score = torch.where(better, here, score)
            found[:, better] = signed[first[better]][:, list(order)].T
    return found


def numbers(members: Tensor) -> Tensor:
    """Return the place of coalitions [coalition, source] among all of them [coalition]; see `coalitions`."""
    return (members.long() * 2 ** torch.arange(members.shape[1])).sum(1)
