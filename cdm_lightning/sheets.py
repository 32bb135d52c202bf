"""Contact sheets: many small images in one picture."""

import math

import torch
from torch import Tensor


def enlarged(images: Tensor) -> Tensor:
    """Repeat the pixels of images [..., height, width] narrower than 64 until they are nearly that wide."""
    scale = max(1, 64 // images.shape[-1])
    return images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def grid(images: Tensor, gap: int = 2) -> Tensor:
    """Lay images, uint8 [n, channel, height, width], out in a near-square grid on white; small ones are enlarged."""
    images = enlarged(images)
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = gap + (k // columns) * (height + gap), gap + (k % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def framed(cells: Tensor, gap: int = 2) -> Tensor:
    """Lay images, uint8 [row, column, channel, height, width], out in a table on white, `gap` pixels apart."""
    padded = torch.nn.functional.pad(cells, (gap, 0, gap, 0), value=255)
    rows, columns, channels, height, width = padded.shape
    whole = padded.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return torch.nn.functional.pad(whole, (0, gap, 0, gap), value=255)
