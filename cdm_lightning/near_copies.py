"""Near-copies of training images: samples nearer to one than nearly all held-out images are."""

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
    """Return each image's distance to its nearest training image [n], in grey levels, see `nearest`.

    Args:
        images: uint8 [n, channel, height, width].
        training: uint8 [m, channel, height, width], m at least 1.
    """
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
        training: uint8 [m, channel, height, width].
        threshold: the 1 % quantile of held-out images' distances to their nearest training image; at most so far, an
            image is a near-copy.
        heldout: the share of near-copies among held-out images, 1 % but for rounding.
    """

    training: Tensor
    threshold: float
    heldout: Interval

    @classmethod
    def of(cls, training: Tensor, heldout: Tensor) -> "NearCopies":
        """Return the threshold that held-out images, uint8 [n, channel, height, width], lead to."""
        distances = nearest_distances(heldout, training)
        threshold = float(distances.quantile(QUANTILE))
        return cls(training, threshold, share_interval(int((distances <= threshold).sum()), len(distances)))

    def share(self, images: Tensor) -> Interval:
        """Return the share of near-copies among images, uint8 [n, channel, height, width]."""
        return share_interval(int((nearest_distances(images, self.training) <= self.threshold).sum()), len(images))
