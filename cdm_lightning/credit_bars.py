"""A picture of images with a bar of credits below each: one piece per source, as long as its share."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cdm_lightning.source_colours import colours

BAR, TEXT, GAP = 8, 12, 4  # pixels: height of a bar, of a line of text; space around
WIDEST_LETTER = 7
WHITE, BLACK, NOTHING = (255, 255, 255), (0, 0, 0), (225, 225, 225)


def annotated(images: Tensor, shares: Tensor, sources: Sequence[str], columns: int, title: str = "") -> Tensor:
    """Return a picture, uint8 [3, height, width], with a cell per image and a key to the colours below all.

    A cell is the image, its bar in the order of the sources, and the name and share of the first one among the largest.
    Without shares the bar is grey.

    Args:
        images: uint8 [n, 1 or 3, height, width], as large as they shall be drawn.
        shares: [source, n], of sum 1, or NaN where there are none.
        sources: their names.
        columns: cells in a row.
        title: a line above all.
    """
    n, _, height, width = images.shape
    longest = max(len(source) for source in sources) + len(" 0.00")
    cell = (max(width, WIDEST_LETTER * longest) + GAP, height + BAR + TEXT + 2 * GAP)
    rows, top = -(-n // columns), TEXT + GAP if title else 0
    whole = max(columns * cell[0] + GAP, WIDEST_LETTER * len(title) + 2 * GAP)
    key = _key(sources, whole)
    canvas = Image.new("RGB", (whole, top + rows * cell[1] + GAP + key.height), WHITE)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP // 2), title, BLACK)
    for k, (image, share) in enumerate(zip(images.cpu(), shares.T.tolist(), strict=True)):
        left, upper = GAP + k % columns * cell[0], top + GAP + k // columns * cell[1]
        canvas.paste(Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy()), (left, upper))
        _draw_bar(draw, (left, upper + height + 1, width), share, sources)
    canvas.paste(key, (0, canvas.height - key.height))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _draw_bar(
    draw: ImageDraw.ImageDraw, place: tuple[int, int, int], shares: Sequence[float], sources: Sequence[str]
) -> None:
    """Draw a bar, and the largest share in words, at (left, upper, width)."""
    left, upper, width = place
    known = all(share == share for share in shares)
    draw.rectangle((left, upper, left + width - 1, upper + BAR - 1), NOTHING)
    start = 0.0
    for share, colour in zip(shares if known else (), colours(sources), strict=False):
        first, last = left + round(width * start), left + round(width * (start + share)) - 1
        if last >= first:
            draw.rectangle((first, upper, last, upper + BAR - 1), _grey_levels(colour))
        start += share
    largest = max(range(len(sources)), key=lambda i: shares[i])
    said = f"{sources[largest]} {shares[largest]:.2f}" if known else "no shares"
    draw.text((left, upper + BAR), said, BLACK)


def _key(sources: Sequence[str], width: int) -> Image.Image:
    """Return a square of its colour and the name of every source, in as many lines as the width makes."""
    places, x, y = list[tuple[int, int]](), GAP, 0
    for source in sources:
        need = TEXT + WIDEST_LETTER * len(source) + 2 * GAP
        if x > GAP and x + need > width:
            x, y = GAP, y + TEXT + GAP
        places.append((x, y))
        x += need
    key = Image.new("RGB", (width, y + TEXT + 2 * GAP), WHITE)
    draw = ImageDraw.Draw(key)
    for (left, upper), source, colour in zip(places, sources, colours(sources), strict=True):
        draw.rectangle((left, upper + 2, left + TEXT - GAP, upper + TEXT - 2), _grey_levels(colour))
        draw.text((left + TEXT, upper), source, BLACK)
    return key


def _grey_levels(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue
