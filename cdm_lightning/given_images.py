"""Images and masks that a user gives: read as the images of the shards were, cut to the square and resized."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.image_folder import CREDITS, SHEET
from cdm_lightning.images import as_tensor, crop_and_resize, open_image
from datamodules.encoding import convert
from datamodules.files import MACOS, SUFFIXES, load_file
from datamodules.tars import DAMAGE

MASKS = ("left", "right", "top", "bottom", "centre")
OPAQUE = 255
HALF = 128  # grey levels from here on are white
TAR = ".tar"
Load = Callable[[], Image.Image]


@dataclass(frozen=True)
class GivenImages:
    """Images that were read.

    Attributes:
        names: of the images: a path, or the path of a tar and the name in it.
        pixels: uint8 [image, channel, height, width], as shards hold them.
        refused: why others could not be used, by name.
    """

    names: list[str]
    pixels: Tensor
    refused: dict[str, str]


def read_images(paths: Sequence[str], shape: tuple[int, int, int]) -> tuple[list[str], Tensor]:
    """Return the names of the images and their pixels, uint8 [image, channel, height, width], as shards hold them.

    Raises:
        BadInput: a path is no image and no folder or tar of images, or an image cannot be decoded.
    """
    given = [one for path in paths for one in _given(Path(path))]
    return [name for name, _ in given], torch.stack([_pixels(name, load, shape) for name, load in given])


def readable_images(paths: Sequence[str], shape: tuple[int, int, int]) -> GivenImages:
    """Return those of the images that can be read, and why others cannot; see `read_images`.

    Raises:
        BadInput: there is none.
    """
    found, refused = dict[str, Tensor](), dict[str, str]()
    for path in paths:
        try:
            for name, load in _given(Path(path)):
                try:
                    found[name] = _pixels(name, load, shape)
                except BadInput as error:
                    refused[name] = str(error)
        except BadInput as error:
            refused[path] = str(error)
    if not found:
        raise BadInput(f"no image can be used: {'; '.join(refused.values())}")
    return GivenImages(list(found), torch.stack(list(found.values())), refused)


def _given(path: Path) -> Iterator[tuple[str, Load]]:
    """Yield name and loader of each image that a path names: itself, all below it or all in it, by name."""
    if path.suffix.lower() == TAR and path.is_file():
        yield from _in_tar(path)
    elif not path.is_dir():
        yield str(path), partial(load_file, path)
    else:
        found = _below(path)
        if not found:
            raise BadInput(f"{path} is a folder without {', '.join(SUFFIXES)} images: name images, or a folder of them")
        yield from ((str(file), partial(load_file, file)) for file in found)


def _below(folder: Path) -> list[Path]:
    """Return the images below a folder; not what is hidden, nor the sheet beside what `sample` or `restore` wrote."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") or part == MACOS for part in file.relative_to(folder).parts)
        and not (file.name == SHEET and file.with_name(CREDITS).is_file())
    )


def check_not_given(option: str, place: str | None, given: Sequence[str]) -> None:
    """Raise BadInput if a file that is to be written is given, or an image, sheet or report of a given folder."""
    if place is None:
        return
    for path in map(Path, given):
        files = [*_below(path), path / SHEET, path / CREDITS] if path.is_dir() else [path]
        if Path(place).resolve() in [file.resolve() for file in files]:
            raise BadInput(f"{option} {place} is one of the files that are given, and would be lost: name another")


def _in_tar(path: Path) -> Iterator[tuple[str, Load]]:
    """Yield the images of a tar in its order; nothing is unpacked. Other members are passed over.

    The second one of the same name is called `NAME (2)`.
    """
    found = Counter[str]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is not None and Path(member.name).suffix.lower() in SUFFIXES:
                    found[member.name] += 1
                    name = f"{path}:{member.name}" + (f" ({found[member.name]})" if found[member.name] > 1 else "")
                    yield name, partial(_load_bytes, file.read(), name)
    except DAMAGE as error:
        raise BadInput(
            f"{path} cannot be read ({str(error) or type(error).__name__}): expected a tar, not compressed"
        ) from error
    if not found:
        raise BadInput(f"{path} is a tar without {', '.join(SUFFIXES)} images: name images, or a tar of them")


def _load_bytes(data: bytes, name: str) -> Image.Image:
    try:
        return open_image(io.BytesIO(data))
    except ValueError as error:
        raise BadInput(f"{name} cannot be used: {error}") from error


def _pixels(name: str, load: Load, shape: tuple[int, int, int]) -> Tensor:
    return as_tensor(crop_and_resize(convert(load(), shape[0], name), shape[1]), shape[0])


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
    loaded = load_file(Path(mask))
    if loaded.has_transparency_data and int(np.array(loaded.convert("RGBA").getchannel("A")).min()) < OPAQUE:
        raise BadInput(f"--mask {mask} is transparent in places: paint it black, and white where pixels are unknown")
    image = convert(loaded, 1, mask)
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
