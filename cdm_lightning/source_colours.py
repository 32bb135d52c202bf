"""One colour per source, the same in every figure of the same sources."""

from collections.abc import Sequence

from cdm_lightning.seeding import stable_hash

PALETTE = (  # matplotlib's tab20
    *("1f77b4", "aec7e8", "ff7f0e", "ffbb78", "2ca02c", "98df8a", "d62728", "ff9896", "9467bd", "c5b0d5"),
    *("8c564b", "c49c94", "e377c2", "f7b6d2", "7f7f7f", "c7c7c7", "bcbd22", "dbdb8d", "17becf", "9edae5"),
)
DARKER = 0.65


def colours(sources: Sequence[str]) -> list[tuple[float, float, float]]:
    """Return red, green and blue in [0, 1] of each source, which follow from its name unless another has taken them.

    When all are taken, they are given again, darker.
    """
    found, taken = [], set[int]()
    for number, source in enumerate(sources):
        if number % len(PALETTE) == 0:
            taken.clear()
        place = stable_hash("colour", source) % len(PALETTE)
        while place in taken:
            place = (place + 1) % len(PALETTE)
        taken.add(place)
        found.append(_parts(PALETTE[place], DARKER ** (number // len(PALETTE))))
    return found


def _parts(colour: str, light: float) -> tuple[float, float, float]:
    red, green, blue = (light * value / 255 for value in bytes.fromhex(colour))
    return red, green, blue
