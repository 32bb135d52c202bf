"""Membership inference: can one tell an image that a model was fitted on from one that it never saw?

By a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604): members are denoised better. Judged as Carlini et al.
(2022, arXiv 2112.03570) ask for: by the area under the curve, and by the share of members that are found where next to
no other image is accused.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.denoiser import per_image
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.intervals import NORMAL, Interval, share_interval
from cdm_lightning.seeding import generator

SIGMAS = (2.0, 1.0, 0.5, 0.2, 0.1)
FALSE_POSITIVES = 0.01
LIKELIHOOD = "likelihood"
LEAST = 4  # images on each side: two to choose the statistic with, two to judge it
BATCH = 128
BISECTIONS = 60


@dataclass(frozen=True)
class Attack:
    """How well a threshold tells members from other images; all numbers are of the half that nothing was chosen on.

    Attributes:
        statistic: the one that did best on the other half: the error at one sigma, all of them, or a log density.
        auc: the probability that a member's statistic is above another image's.
        chance: how probable so large an area would be if nothing could be told (one-sided, normal).
        true_positives: the share of members above a threshold that at most 1 % of the other half's non-members exceed.
        false_positives: the share of non-members above it.
        members: how many were judged.
        others: likewise.
    """

    statistic: str
    auc: Interval
    chance: float
    true_positives: Interval
    false_positives: Interval
    members: int
    others: int


def losses(
    denoise: Callable[[Tensor, Tensor], Tensor], x_0: Tensor, noise: Tensor, sigmas: Sequence[float] = SIGMAS
) -> Tensor:
    """Return |D(x_0 + sigma noise; sigma) - x_0|^2 [n, level], summed over pixels, averaged over draws, in float64.

    Every image gets the same draws, so that no image has an easier noise than another, and images stay independent.

    Args:
        denoise: D(x [batch, ...], sigma [batch]).
        x_0: images [n, channel, height, width] in [-1, 1].
        noise: [draw, channel, height, width].
        sigmas: noise levels.
    """
    found = x_0.new_zeros((len(x_0), len(sigmas)), dtype=torch.float64)
    with torch.inference_mode():
        for level, sigma in enumerate(sigmas):
            for draw in noise.to(x_0):
                parts = [_squares(denoise, clean, draw, sigma) for clean in x_0.split(BATCH)]
                found[:, level] += torch.cat(parts).double() / len(noise)
    return found


def _squares(denoise: Callable[[Tensor, Tensor], Tensor], clean: Tensor, draw: Tensor, sigma: float) -> Tensor:
    level = clean.new_full((len(clean),), sigma)
    return (denoise(clean + per_image(level, clean) * draw, level) - clean).square().flatten(1).sum(1)


def loss_statistics(found: Tensor, sigmas: Sequence[float] = SIGMAS) -> dict[str, Tensor]:
    """Return statistics [n] by name, larger for likelier members, of losses [n, level] at falling noise levels.

    One for each level, and `likelihood`: the integral of the loss over log sigma, weighed by 1 / sigma^2, which is
    the log density up to a constant and to what lies beyond the levels (Kong et al. 2023, arXiv 2302.03792).
    """
    level = torch.tensor(sigmas, dtype=found.dtype, device=found.device)
    scaled = found / level.square()
    widths = (level[:-1] / level[1:]).log()
    integral = ((scaled[:, :-1] + scaled[:, 1:]) / 2 * widths).sum(1)
    single = {f"loss at {sigma:g}": -found[:, i] for i, sigma in enumerate(sigmas)}
    return single | {LIKELIHOOD: -integral}


def density_statistics(forms: Sequence[Gaussians], prior: Sequence[float], x_0: Tensor) -> dict[str, Tensor]:
    """Return the log density [n] of a mixture of closed forms at each noise level, by name; none without closed forms.

    Args:
        forms: of the sources.
        prior: share of each.
        x_0: images [n, channel, height, width] in [-1, 1].
    """
    if not forms:
        return {}
    shares = torch.tensor(prior, dtype=torch.float64, device=x_0.device).log()
    found = {}
    for sigma in SIGMAS:
        level = x_0.new_full((len(x_0),), sigma)
        each = torch.stack([form.log_density(x_0, level).double() for form in forms])
        found[f"log density at {sigma:g}"] = (each + shares[:, None]).logsumexp(0)
    return found


def attack(members: Mapping[str, Tensor], others: Mapping[str, Tensor], seed: int) -> Attack:
    """Choose a statistic and a threshold on one half of the images, and judge them on the other half.

    Args:
        members: statistics [n] by name, n at least 4; the same names in both.
        others: of images that were not used.
        seed: of the halves.
    """
    m, n = (len(next(iter(some.values()))) for some in (members, others))
    used, judged = _halves(m, generator(seed, "audit", "members"))
    used_others, judged_others = _halves(n, generator(seed, "audit", "others"))
    best = max(members, key=lambda name: auc(members[name][used], others[name][used_others]))
    threshold = threshold_at(others[best][used_others], FALSE_POSITIVES)
    theirs, rest = members[best][judged], others[best][judged_others]
    area = auc(theirs, rest)
    hits, alarms = int((theirs > threshold).sum()), int((rest > threshold).sum())
    return Attack(
        best,
        auc_interval(area, len(theirs), len(rest)),
        auc_chance(area, len(theirs), len(rest)),
        share_interval(hits, len(theirs)),
        share_interval(alarms, len(rest)),
        len(theirs),
        len(rest),
    )


def _halves(n: int, own: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(n, generator=own)
    return order[: n // 2], order[n // 2 :]


def auc(members: Tensor, others: Tensor) -> float:
    """Return the share of pairs in which the member [m] is above the other [n]; equal ones count half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members.contiguous())
    not_above = torch.searchsorted(ordered, members.contiguous(), right=True)
    return float((below + not_above).double().mean()) / (2 * len(others))


def auc_interval(area: float, members: int, others: int) -> Interval:
    """Return the interval of the area (Newcombe 2006, method 5): areas whose own standard error reaches this one.

    Unlike DeLong's it is no single point where all pairs are in order, and stays within [0, 1].
    """

    def reaches(candidate: float) -> bool:
        return abs(candidate - area) <= NORMAL * math.sqrt(auc_variance(candidate, members, others))

    ends = []
    for outside in (0.0, 1.0):
        near, far = area, outside
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            near, far = (middle, far) if reaches(middle) else (near, middle)
        ends.append(near)
    return Interval(area, *ends)


def auc_variance(area: float, members: int, others: int) -> float:
    """Return the variance of an area (Hanley and McNeil 1982), with half of all images for each number of them but in
    the denominator (Newcombe 2006).
    """
    extra = (members + others) / 2 - 1
    return area * (1 - area) * (1 + extra * ((1 - area) / (2 - area) + area / (1 + area))) / (members * others)


def auc_chance(area: float, members: int, others: int) -> float:
    """Return the probability of such an area or a larger one if members are like others (Mann and Whitney 1947)."""
    deviation = math.sqrt((members + others + 1) / (12 * members * others))
    return 0.5 * math.erfc((area - 0.5) / deviation / math.sqrt(2))


def threshold_at(others: Tensor, false_positives: float) -> float:
    """Return the least of the values [n] which at most this share of them exceeds."""
    allowed = math.floor(false_positives * len(others))
    return float(others.sort(descending=True).values[allowed])
