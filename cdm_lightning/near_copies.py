"""Near-copies of training images: samples nearer to one than nearly all held-out images are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.intervals import Interval, share_interval

QUANTILE = 0.01
ROWS = 2048  # images at a time


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """Return each image's distance to its nearest training image [n]: root mean square over pixels, in grey levels.

    Exact, since the sums of squares are whole numbers below 2^53: the same on every machine, and 0 for a copy.

    Args:
        images: uint8 [n, channel, height, width].
        training: uint8 [m, channel, height, width], m at least 1.
    """
    return torch.cat([_nearest(some.flatten(1).double(), training) for some in images.split(ROWS)])


def _nearest(flat: Tensor, training: Tensor) -> Tensor:
    """Return `nearest_distances` of images [n, dimension], float64, in grey levels."""
    own, smallest = flat.square().sum(1), flat.new_full((len(flat),), torch.inf)
    for some in training.to(flat.device).split(ROWS):
        other = some.flatten(1).double()
        square = own[:, None] + other.square().sum(1) - 2 * flat @ other.T
        smallest = torch.minimum(smallest, square.min(1).values)
    return (smallest / flat.shape[1]).sqrt()


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
