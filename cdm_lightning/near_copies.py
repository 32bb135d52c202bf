"""Near-copies of training images: samples nearer to one than nearly all held-out images are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.intervals import Interval, share_interval

QUANTILE = 0.01
ROWS = 2048  # images at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest ones of each image, nearest first: `index` [n, k] of them, and their `distance` [n, k], float64."""

    index: Tensor
    distance: Tensor


def nearest(images: Tensor, training: Tensor, k: int) -> Nearest:
    """Return the k nearest training images of each image, by the root mean square difference.

    Of grey levels it is exact, since the sums of squares are whole numbers below 2^53: the same on every machine, and 0
    for a copy.

    Args:
        images: [n, ...], grey levels or features.
        training: [m, ...], as the images; fewer than k are all returned.
        k: at least 1.
    """
    parts = [_nearest(some.flatten(1).double(), training, k) for some in images.split(ROWS)]
    return Nearest(torch.cat([part.index for part in parts]), torch.cat([part.distance for part in parts]))


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """Return each image's distance to its nearest training image [n], see `nearest`."""
    return nearest(images, training, 1).distance[:, 0]


def _nearest(flat: Tensor, training: Tensor, k: int) -> Nearest:
    """Return `nearest` of images [n, dimension], float64."""
    own = flat.square().sum(1)
    best = flat.new_empty(len(flat), 0)
    index = torch.empty(len(flat), 0, dtype=torch.long, device=flat.device)
    for start, some in zip(range(0, len(training), ROWS), training.to(flat.device).split(ROWS), strict=True):
        other = some.flatten(1).double()
        square = torch.cat([best, own[:, None] + other.square().sum(1) - 2 * flat @ other.T], 1)
        numbers = torch.arange(start, start + len(some), device=flat.device).expand(len(flat), -1)
        best, place = square.topk(min(k, square.shape[1]), largest=False)
        index = torch.cat([index, numbers], 1).gather(1, place)
    return Nearest(index, (best.clamp_min(0) / flat.shape[1]).sqrt())


@dataclass(frozen=True)
class NearCopies:
    """What counts as a near-copy of a training image.

    Attributes:
        training: uint8 [m, channel, height, width], or features [m, dimension].
        distances: of held-out images to their nearest training image [n].
        threshold: the 1 % quantile of these, or less; at most so far, an image is a near-copy.
        heldout: the share of near-copies among held-out images: 1 % but for rounding, or less.
    """

    training: Tensor
    distances: Tensor
    threshold: float
    heldout: Interval

    @classmethod
    def of(cls, training: Tensor, heldout: Tensor, most: float = math.inf) -> "NearCopies":
        """Return the threshold that held-out images, shaped as `training`, lead to; at most `most`."""
        distances = nearest_distances(heldout, training)
        threshold = min(float(distances.quantile(QUANTILE)), most)
        return cls(training, distances, threshold, _share(distances, threshold))

    def share(self, images: Tensor) -> Interval:
        """Return the share of near-copies among images, shaped as `training`."""
        return self.share_of(nearest_distances(images, self.training))

    def share_of(self, distances: Tensor) -> Interval:
        """Return the share of near-copies among images that are so far from their nearest training image [n]."""
        return _share(distances, self.threshold)

    def chance(self, distances: Tensor) -> float:
        """Return how probable so many near-copies, or more, would be among new images; at most, not exactly.

        Samples that are like held-out images stand anywhere among them in the order of distances. So the number of
        samples that come before the k-th of m held-out images has a beta-binomial law, (k, m - k + 1), whatever the
        distances are: k is the first one beyond the quantile, of which few held-out images give a rough idea only.
        """
        count, n, m = int((distances <= self.threshold).sum()), len(distances), len(self.distances)
        k = int((self.distances <= self.distances.quantile(QUANTILE)).sum()) + 1
        if count == 0 or k > m:
            return 1.0
        return min(1.0, math.fsum(_beta_binomial(i, n, k, m - k + 1) for i in range(count, n + 1)))


def _share(distances: Tensor, threshold: float) -> Interval:
    return share_interval(int((distances <= threshold).sum()), len(distances))


def _beta_binomial(i: int, n: int, a: int, b: int) -> float:
    """Return the probability of i successes of n, of a share drawn from the beta law (a, b)."""
    ways = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    return math.exp(ways + _log_beta(i + a, n - i + b) - _log_beta(a, b))


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
