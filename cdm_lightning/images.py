"""Images: grey levels 0..255 <-> x_0 in [-1, 1], exactly; PNG bytes; centre crop and resize."""

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PIXEL_LIMIT = 64_000_000  # more than this many pixels is refused before they are decoded


def from_uint8(images: Tensor) -> Tensor:
    """Map grey levels 0..255 (uint8, any shape) to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] (values outside are clipped) to the nearest grey level; the exact inverse of `from_uint8`."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def encode_png(image: Tensor) -> bytes:
    """Encode one image, uint8 [channel, height, width] with 1 or 3 channels, as PNG; same input, same bytes."""
    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_image(data: bytes, channels: int) -> Tensor:
    """Decode PNG or JPEG bytes to uint8 [channel, height, width]; grey and colour are converted to `channels`.

    Raises:
        ValueError: the bytes are no PNG or JPEG image, or it has more than `PIXEL_LIMIT` pixels.
    """
    return as_tensor(open_image(data), channels)


def open_image(data: bytes) -> Image.Image:
    """Open PNG or JPEG bytes and decode them.

    Raises:
        ValueError: the bytes are no PNG or JPEG image, or it has more than `PIXEL_LIMIT` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > PIXEL_LIMIT:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {PIXEL_LIMIT}")
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no readable PNG or JPEG image ({error})") from error
    return image


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
