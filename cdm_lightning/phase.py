"""A phase of a fit: what it is, where it stands in the series, and how long its parts take."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One step of a fit.

    Attributes:
        kind: `backbone` on public, `source`, or `composed` validation.
        source: of a `source` phase; `public` for the backbone; the newest one in `composed`.
        position: place of this phase in the series, from 1.
        total: number of phases in the series.
    """

    kind: Literal["backbone", "source", "composed"]
    source: str
    position: int
    total: int

    @property
    def title(self) -> str:
        """Return what the progress bar says."""
        what = {"backbone": "backbone on public", "source": f"source {self.source}", "composed": "composed model"}
        return f"[{self.position}/{self.total}] {what[self.kind]}"


class Clock:
    """Tells what a phase did and how long it took, and keeps the seconds."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, what: str) -> Iterator[None]:
        """Time one part of the phase; `what` is what people read."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        log.info("%s: %s, %.1f s", self.phase.title, what, self.seconds[name])

    def save(self, folder: Path) -> None:
        """Write the seconds of every part into the phase's run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        report = {"seconds": self.seconds, "threads": torch.get_num_threads()}
        (folder / "seconds.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
