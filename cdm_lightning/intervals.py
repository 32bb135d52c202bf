"""Intervals of nominally 95 %: of a score and of the ratio of two, from half-samples; of a share; of a mean.

Also the exact end of a share's interval, at any risk.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.seeding import generator

REPEATS = 200
BISECTIONS = 30
NORMAL = 1.959964  # the 97.5 % quantile of a standard normal number


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HalfSamples:
    """Half of the sampled and half of the reference images, drawn without replacement, again and again.

    Over halves, a score varies as much as over independent draws of all images (delete-d jackknife: Shao and Wu 1989,
    d = n / 2). A bootstrap with replacement would not do: an image drawn twice is its own neighbour, and KID is no
    longer unbiased. The draws depend on the numbers and the seed alone, so that two models are compared on the same
    halves: of images that come from the same noise, and of the same reference images.

    Attributes:
        generated: indices [repeat, n // 2].
        reference: indices [repeat, m // 2].
    """

    generated: Tensor
    reference: Tensor

    @classmethod
    def draw(cls, generated: int, reference: int, seed: int, repeats: int = REPEATS) -> "HalfSamples":
        """Draw halves of this many sampled and reference images, at least four of each."""
        return cls(
            _halves(generated, repeats, generator(seed, "half of the generated")),
            _halves(reference, repeats, generator(seed, "half of the reference")),
        )


def _halves(n: int, repeats: int, own: torch.Generator) -> Tensor:
    return torch.stack([torch.randperm(n, generator=own)[: n // 2] for _ in range(repeats)])


def score_interval(value: float, replicates: Tensor) -> Interval:
    """Return the interval of the expected score of this many images: 1.96 standard errors to both sides.

    The replicates [repeat] are scores of halves. Their standard deviation is the score's standard error; their mean is
    not used, since a Frechet distance of fewer images is larger. So the interval is
    symmetric, and holds a skewed score, such as KID of few images, less often than 95 times of 100.
    """
    half = NORMAL * float(replicates.std())
    return Interval(value, value - half, value + half)


def ratio_interval(value: float, base: float, replicates: Tensor, base_replicates: Tensor) -> Interval:
    """Return value / base and its interval, for positive scores of the same halves; see `score_interval`.

    The standard error is that of the logarithm of the ratio. What both scores have in common cancels: the ratio of a
    score to itself is 1, and so are the ends.
    """
    factor = math.exp(NORMAL * float((replicates / base_replicates).log().std()))
    ratio = value / base
    return Interval(ratio, ratio / factor, ratio * factor)


def share_interval(count: int, n: int) -> Interval:
    """Return count / n and the interval of the probability behind it (Wilson 1927)."""
    share, spread = count / n, NORMAL**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def exact_upper(count: int, n: int, risk: float) -> float:
    """Return the probability with which at most `count` of n are as rare as `risk` (Clopper and Pearson 1934).

    A larger one is ruled out but for this risk. The lower end is 1 - exact_upper(n - count, n, risk).
    """
    if count >= n:
        return 1.0
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).lgamma()
    low, high = count / n, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tail = float((ways + k * math.log(middle) + (n - k) * math.log1p(-middle)).exp().sum()) if middle else 1.0
        low, high = (middle, high) if tail > risk else (low, middle)
    return high


def mean_interval(values: Tensor) -> Interval:
    """Return the mean of independent values [n], n >= 2, and the interval of its expectation: 1.96 standard errors."""
    mean, half = float(values.mean()), NORMAL * float(values.std()) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
