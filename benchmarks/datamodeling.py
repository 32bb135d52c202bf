"""Scores of credits against the worth of coalitions: the linear datamodeling score, and rank correlation."""

import torch
from scipy.stats import rankdata
from torch import Tensor

from cdm_lightning.seeding import generator

RESAMPLED = 2000
SMALLEST = 1e-300


def centred_ranks(values: Tensor) -> Tensor:
    """Return the ranks of each column [n, image] without their mean."""
    rank = torch.from_numpy(rankdata(values.double().numpy(), axis=0))
    return rank - rank.mean(0)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation [image] of `a` and `b` [n, image]; 0 where one of them is constant."""
    one, other = centred_ranks(a), centred_ranks(b)
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


def additive_fit(worth: Tensor, members: Tensor) -> Tensor:
    """Return the credits [source, image] whose sums, but for a constant, come nearest to the worth in least squares.

    Args:
        worth: [coalition, image].
        members: bool [coalition, source].
    """
    design = torch.cat([members, torch.ones_like(members[:, :1])], 1).double()
    solution: Tensor = torch.linalg.lstsq(design, worth.double()).solution
    return solution[:-1]


def posterior_worth(share: Tensor, prior: Tensor, members: Tensor) -> Tensor:
    """Return what posterior credits say of the worth of coalitions [coalition, image], but for a constant of the image.

    With w_i = lambda_i p_i / p, the density of a coalition is p_S = p sum_{i in S} w_i / sum_{i in S} lambda_i.

    Args:
        share: the credits w_i [source, image].
        prior: lambda_i [source].
        members: bool [coalition, source], of at least one member each.
    """
    inside, weight = members.double() @ share.double(), members.double() @ prior.double()
    return inside.clamp_min(SMALLEST).log() - weight.log()[:, None]


def resampled(n: int, seed: int) -> Tensor:
    """Return how often each of n images is drawn [RESAMPLED, image], n of them with replacement."""
    index = torch.randint(n, (RESAMPLED, n), generator=generator(seed, "bootstrap"))
    return torch.zeros(RESAMPLED, n, dtype=torch.float64).scatter_add(1, index, torch.ones(RESAMPLED, n).double())


def interval(scores: Tensor) -> list[float]:
    """Return the ends of the interval of 95 % that scores [RESAMPLED] of resampled images give."""
    found: list[float] = scores.quantile(torch.tensor([0.025, 0.975]).to(scores)).tolist()
    return found


def mean_with_interval(scores: Tensor, seed: int) -> list[float]:
    """Return the mean of scores [image], and the ends of its bootstrap interval of 95 % over the images."""
    means = resampled(len(scores), seed) @ scores.double() / len(scores)
    return [float(scores.mean()), *interval(means)]


def total_with_interval(worth: Tensor, said: Tensor, seed: int) -> list[float]:
    """Return the rank correlation of what coalitions are worth to all images together with what is said of that.

    Args:
        worth: [coalition, image].
        said: the same; of a linear datamodeling score, the sums of credits.
        seed: of the bootstrap interval of 95 % over the images, whose ends come second and third.
    """
    drawn = resampled(worth.shape[1], seed).T
    drawn = torch.cat([torch.ones_like(drawn[:, :1]), drawn], 1)
    score = rank_correlation(worth.double() @ drawn, said.double() @ drawn)
    return [float(score[0]), *interval(score[1:])]
