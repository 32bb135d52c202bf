"""Scores of credits against the worth of coalitions: the linear datamodeling score, and rank correlation."""

import torch
from scipy.stats import rankdata
from torch import Tensor

from cdm_lightning.seeding import generator

RESAMPLED = 2000


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation [image] of `a` and `b` [n, image]; 0 where one of them is constant."""
    one, other = (torch.from_numpy(rankdata(values.double().numpy(), axis=0)) for values in (a, b))
    one, other = one - one.mean(0), other - other.mean(0)
    size = (one.square().sum(0) * other.square().sum(0)).sqrt()
    return torch.where(size > 0, (one * other).sum(0) / size.clamp_min(1e-12), 0.0)


def lds(worth: Tensor, members: Tensor, credit: Tensor) -> Tensor:
    """Return each image's linear datamodeling score [image] (Park et al. 2023, arXiv 2303.14186, section 2).

    That is Spearman's correlation, over coalitions, of what they are worth with the sum of their members' credits.

    Args:
        worth: [coalition, image].
        members: bool [coalition, source].
        credit: [source, image].
    """
    return rank_correlation(worth, members.double() @ credit.double())


def mean_with_interval(scores: Tensor, seed: int) -> list[float]:
    """Return the mean of scores [image], and the ends of its bootstrap interval of 95 % over the images."""
    index = torch.randint(len(scores), (RESAMPLED, len(scores)), generator=generator(seed, "bootstrap"))
    means = scores[index].mean(1)
    return [float(scores.mean()), *means.quantile(torch.tensor([0.025, 0.975]).to(means)).tolist()]
