"""How images become shards: the settings of the shard writer, checked once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.images import PIXEL_LIMIT
from datamodules.origins import OriginName
from datamodules.splits import check_split

MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Plan:
    """The settings of `writer.write_shards`.

    Attributes:
        from_: where the images come from.
        input: the folder or CSV file of the images, or where a downloaded data set lies.
        split: what makes a source: class, folder, list or random:N.
        image_size: height and width in pixels; images are cut to the centred square and resized.
        channels: 1 (grey) or 3 (RGB).
        public_classes: labels, or indices of classes, that go to `public`.
        public_fraction: fraction of every class that goes to `public`.
        heldout_fraction: fraction of every source that is held out from training.
        shards_per_source: number of tars that a source's samples are spread over.
        licence: licence of the images, for the manifest.
        drop_from_public: an image that is in `public` and in a source leaves `public`, not the source.

    Raises:
        BadInput: a value is out of range, in one sentence.
    """

    from_: OriginName
    input: str | None
    split: str
    image_size: int
    channels: int
    public_classes: Sequence[str | int]
    public_fraction: float
    heldout_fraction: float
    shards_per_source: int
    licence: str = "unknown"
    drop_from_public: bool = False

    def __post_init__(self) -> None:
        check_origin_name(self.from_)
        check_split(self.split)
        check_channels(self.channels)
        check_fraction("public_fraction", self.public_fraction)
        check_fraction("heldout_fraction", self.heldout_fraction)
        check_at_least("image_size", self.image_size, 1)
        check_at_most("image_size", self.image_size, math.isqrt(PIXEL_LIMIT))
        check_at_least("shards_per_source", self.shards_per_source, 1)
        check_at_most("shards_per_source", self.shards_per_source, MOST_SHARDS)


def check_origin_name(name: str) -> None:
    """Raise BadInput unless `name` is an origin of images."""
    known = get_args(OriginName)
    if name not in known:
        raise BadInput(f"from must be one of {', '.join(known)}, but is '{name}'{did_you_mean(name, known)}")


def check_channels(channels: int) -> None:
    """Raise BadInput unless `channels` is 1 (grey) or 3 (RGB)."""
    if channels not in (1, 3):
        raise BadInput(f"channels must be 1 (grey) or 3 (colour), but is {channels}")


def check_fraction(name: str, value: float) -> None:
    """Raise BadInput unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise BadInput(f"{name} must be at least 0 and below 1, but is {value}")


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raise BadInput unless value >= minimum."""
    if value < minimum:
        raise BadInput(f"{name} must be at least {minimum}, but is {value}")


def check_at_most(name: str, value: int, maximum: int) -> None:
    """Raise BadInput unless value <= maximum."""
    if value > maximum:
        raise BadInput(f"{name} must be at most {maximum}, but is {value}")
