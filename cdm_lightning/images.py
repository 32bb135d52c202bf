"""Images: grey levels 0..255 <-> x_0 in [-1, 1], exactly; PNG bytes; centre crop and resize."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

PIXEL_LIMIT = 64_000_000  # more than this many pixels is refused before they are decoded
PIXELS = 41  # where those of a PNG begin that has no other chunk before them
PLAIN_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
COLOURS = {"L": "grey", "RGB": "colour"}


def from_uint8(images: Tensor) -> Tensor:
    """Map grey levels 0..255 (uint8, any shape) to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] (values outside are clipped) to the nearest grey level; the exact inverse of `from_uint8`."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def spread(images: Tensor, most: int) -> Tensor:
    """Return at most `most` of images [n, ...], evenly spaced in their order.

    Images come in the order of their keys, and those of a folder begin with its name: the first ones would be of one
    folder, and so perhaps of one class.
    """
    if len(images) <= most:
        return images
    return images[torch.arange(most) * len(images) // most]


def encode_png(image: Tensor) -> bytes:
    """Encode one image, uint8 [channel, height, width] with 1 or 3 channels, as PNG; same input, same bytes."""
    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def images_of(levels: Sequence[bytes], shape: tuple[int, int, int]) -> Tensor:
    """Return images, uint8 [n, channel, height, width], of the `decode_levels` of each; there may be none."""
    channels, height, width = shape
    if not levels:
        return torch.empty(0, *shape, dtype=torch.uint8)
    joined = torch.frombuffer(bytearray().join(levels), dtype=torch.uint8)
    return joined.reshape(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def decode_levels(data: bytes, shape: tuple[int, int, int]) -> bytes:
    """Decode the bytes of a grey or RGB image of `shape` (channel, height, width) to its levels, pixel by pixel.

    Raises:
        ValueError: the bytes are no PNG or JPEG image, or one of another shape; that is seen before it is decoded.
    """
    channels, height, width = shape
    if _is_plain(data, shape):
        with suppress(ValueError):  # of damage, which the file's own reader describes
            return _decode_plain(data, shape)
    image = _header(io.BytesIO(data))
    found, expected = (image.mode, image.width, image.height), ("L" if channels == 1 else "RGB", width, height)
    if found != expected:
        raise ValueError(f"it is {_described(*found)}, not {_described(*expected)}")
    return _loaded(image).tobytes()


def _is_plain(data: bytes, shape: tuple[int, int, int]) -> bool:
    """Return whether this is a PNG of uint8 `shape`, its header, one chunk of pixels and its end, as we write them."""
    start, end = _plain_start(shape), len(data) - len(PLAIN_END)
    length, name = data[len(start) : len(start) + 4], data[len(start) + 4 : PIXELS]
    whole = name == b"IDAT" and PIXELS + int.from_bytes(length, "big") + 4 == end
    return whole and data.startswith(start) and data.endswith(PLAIN_END)


@cache
def _plain_start(shape: tuple[int, int, int]) -> bytes:
    """Return the signature and the header of a PNG of uint8 `shape`, not interlaced."""
    channels, height, width = shape
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def _decode_plain(data: bytes, shape: tuple[int, int, int]) -> bytes:
    """Decode such a PNG by Pillow's decoder alone: reading a file, chunk by chunk, takes as long again.

    Raises:
        ValueError: it is damaged.
    """
    channels, height, width = shape
    mode, pixels = "L" if channels == 1 else "RGB", data[PIXELS : -len(PLAIN_END) - 4]
    return Image.frombytes(mode, (width, height), pixels, "zip", mode).tobytes()


def _described(mode: str, width: int, height: int) -> str:
    return f"{width}x{height} {COLOURS.get(mode, f'of mode {mode}')}"


def open_image(file: BinaryIO) -> Image.Image:
    """Decode a PNG or JPEG file and turn it upright, as its EXIF data says.

    Raises:
        ValueError: it is no PNG or JPEG image, or it has more than `PIXEL_LIMIT` pixels; that is seen before it is
            decoded.
    """
    image = _loaded(_header(file))
    with _refusing_damage():
        return ImageOps.exif_transpose(image)


def _header(file: BinaryIO) -> Image.Image:
    """Return an image of which only the header is read."""
    with _refusing_damage():
        image = Image.open(file, formats=("PNG", "JPEG"))
    if image.width * image.height > PIXEL_LIMIT:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {PIXEL_LIMIT}")
    return image


def _loaded(image: Image.Image) -> Image.Image:
    with _refusing_damage():
        image.load()
    return image


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Raise ValueError for whatever Pillow raises at a damaged file: its parsers promise no kind of exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise ValueError("no readable PNG or JPEG image") from error
    except Exception as error:
        raise ValueError(f"no readable PNG or JPEG image ({error})") from error


def as_tensor(image: Image.Image, channels: int) -> Tensor:
    """Convert an image to uint8 [channel, height, width] with 1 (grey) or 3 (RGB) channels."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return torch.from_numpy(array).reshape(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def crop_and_resize(image: Image.Image, size: int) -> Image.Image:
    """Cut the largest centred square out of an image and resize it to `size` x `size` (Lanczos, antialiased)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
