"""Memorization: are samples nearer to training images than images are that the model never saw?

One notion of a near-copy, `near_copies`, in three spaces: pixels; pixels of mirrored training images; features. Each
has the held-out images' own distances in the same space to compare with. A mirrored near-copy is also as near as one
that is not mirrored: images are far from most mirrored ones, and a blurred sample is less so.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from cdm_lightning.near_copies import NearCopies, Nearest, nearest

PIXELS, MIRRORED, FEATURES = "pixels", "mirrored", "features"


@dataclass(frozen=True)
class Images:
    """Images, uint8 [n, channel, height, width], and their features [n, dimension], if there is an extractor."""

    pixels: Tensor
    features: Tensor | None

    def points(self, space: str) -> Tensor:
        """Return what is compared in a space; only training images are mirrored."""
        if space != FEATURES:
            return self.pixels
        assert self.features is not None
        return self.features


def spaces(training: Images, heldout: Images) -> dict[str, NearCopies]:
    """Return what a near-copy of training images is in each space, as held-out images have it."""
    plain = NearCopies.of(training.pixels, heldout.pixels)
    mirrored = NearCopies.of(training.pixels.flip(-1), heldout.pixels, plain.threshold)
    found = {PIXELS: plain, MIRRORED: mirrored}
    if training.features is not None and heldout.features is not None:
        found[FEATURES] = NearCopies.of(training.features, heldout.features)
    return found


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training image, in the space in which it is nearest for the threshold there.

    Attributes:
        sample: k of the sample.
        training: index of the training image.
        space: where they are near; `mirrored` is near the mirrored training image.
        distance: in grey levels (rms), or in features (rms).
        ratio: the distance in units of the threshold; at most 1 is a near-copy.
    """

    sample: int
    training: int
    space: str
    distance: float
    ratio: float


def memorization(samples: Images, judges: Mapping[str, NearCopies]) -> tuple[dict[str, dict[str, Any]], list[Pair]]:
    """Return, by space, what is measured of samples, as JSON; and a pair for every sample, most suspicious first.

    `near_copies` is their share (Wilson's interval), `chance` how probable so many would be among new images,
    `median` the middle distance; the threshold and what begins with `heldout` are of held-out images.
    """
    found, pairs = {}, []
    for space, judge in judges.items():
        near = nearest(samples.points(space), judge.training, 1)
        distance = near.distance[:, 0]
        found[space] = {
            "near_copies": asdict(judge.share_of(distance)),
            "chance": judge.chance(distance),
            "median": float(distance.median()),
            "threshold": judge.threshold,
            "heldout_near_copies": asdict(judge.heldout),
            "heldout_median": float(judge.distances.median()),
            "heldout_images": len(judge.distances),
        }
        pairs.append(_pairs(space, near, judge.threshold))
    closest = [min(of_one, key=lambda pair: pair.ratio) for of_one in zip(*pairs, strict=True)]
    return found, sorted(closest, key=lambda pair: pair.ratio)


def _pairs(space: str, near: Nearest, threshold: float) -> list[Pair]:
    """Return the pair of every sample in one space; where held-out images are copies, another copy is as far as one."""
    index, distances = near.index[:, 0], near.distance[:, 0]
    ratio = distances / threshold if threshold else 1 + distances
    columns = zip(index.tolist(), distances.tolist(), ratio.tolist(), strict=True)
    return [Pair(k, place, space, distance, times) for k, (place, distance, times) in enumerate(columns)]
