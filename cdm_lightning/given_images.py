"""Images and masks that a user gives: read as the images of the shards were, cut to the square and resized."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.images import as_tensor, crop_and_resize
from datamodules.encoding import convert
from datamodules.files import SUFFIXES, load_file

MASKS = ("left", "right", "top", "bottom", "centre")
HALF = 128  # grey levels from here on are white


def read_images(paths: Sequence[str], shape: tuple[int, int, int]) -> tuple[list[str], Tensor]:
    """Return the names of the images and their pixels, uint8 [image, channel, height, width], as shards hold them.

    Raises:
        BadInput: a path is no image and no folder of images, or an image cannot be decoded.
    """
    files = [file for path in paths for file in _files(Path(path))]
    return [str(file) for file in files], torch.stack([_read(file, shape[0], shape[1]) for file in files])


def _files(path: Path) -> list[Path]:
    """Return the images that a path names: itself, or all below it in the order of their names."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise BadInput(f"{path} is a folder without {', '.join(SUFFIXES)} images: name images, or a folder of them")
    return found


def _read(file: Path, channels: int, size: int) -> Tensor:
    return as_tensor(crop_and_resize(convert(load_file(file), channels, str(file)), size), channels)


def read_mask(mask: str | None, shape: tuple[int, int, int]) -> Tensor:
    """Return which pixels are unknown, bool of `shape` (channel, height, width): none without a mask.

    Args:
        mask: a word of `MASKS`, or a file: its centred square, resized by nearest neighbour; white is unknown.
        shape: of an image.

    Raises:
        BadInput: it is neither.
    """
    _, height, width = shape
    if mask is None:
        return torch.zeros(shape, dtype=torch.bool)
    if mask in MASKS:
        return built_in_mask(mask, height, width).expand(shape)
    if not Path(mask).is_file():
        words = f"expected a PNG or JPEG file, or one of {', '.join(MASKS)}"
        raise BadInput(f"--mask {mask}: there is no such file; {words}{did_you_mean(mask, MASKS)}")
    image = convert(load_file(Path(mask)), 1, mask)
    square = as_tensor(crop_and_resize(image, min(image.size)), 1)[None]
    resized = interpolate(square, (height, width), mode="nearest-exact")[0]
    return (resized >= HALF).expand(shape)


def built_in_mask(word: str, height: int, width: int) -> Tensor:
    """Return a half of the image, or the quarter in its centre, as bool [height, width]."""
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    inside = {
        "left": column < width // 2,
        "right": column >= width // 2,
        "top": row < height // 2,
        "bottom": row >= height // 2,
        "centre": (row >= height // 4)
        & (row < height - height // 4)
        & (column >= width // 4)
        & (column < width - width // 4),
    }
    return inside[word].expand(height, width)
