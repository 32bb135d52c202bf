"""Images before they are written: where each comes from, what it is called and how it is loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Record:
    """One image before it is written: `load` decodes it when called; `source` is None where the origin names none."""

    key: str
    label: str
    source: str | None
    origin: str
    load: Callable[[], Image.Image]


@dataclass(frozen=True)
class Collection:
    """All images of an origin, and its classes in the order that indices of classes refer to."""

    records: list[Record]
    classes: list[str]
