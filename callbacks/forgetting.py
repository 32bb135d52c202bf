"""Whether the composed model forgets: its held-out denoising error on every source, after every source."""

import json
import math
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from callbacks.board import log_figure, log_scalars
from callbacks.figures import history
from callbacks.held_out import HeldOut
from cdm_lightning.evaluation import COMPOSED_SIGMA, composed_errors
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.tensor_files import write_report


class Forgetting(HeldOut):
    """Draws the forgetting matrix [number of sources, source], and logs by how much the error has risen since it was
    first measured, averaged over the earlier sources, relative to it.

    Args:
        path: JSON file of the rows so far, which a continual run extends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, extend the file and log."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed = pl_module.composed()
        row = composed_errors(composed, self.held_out)
        if not row:
            return
        rows = self._read() + [row]
        write_report(self.path, rows)
        step = len(composed.sources)
        log_scalars(trainer, "forgetting", {"average": average_forgetting(rows)}, step)
        title = f"held-out error of the composed model at sigma {COMPOSED_SIGMA:g}, from the first fit on"
        labels = [str(len(row)) for row in rows]
        log_figure(trainer, "forgetting/matrix", history(rows, title, labels, "sources in the model"), step)

    def _read(self) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else []
        return rows


def average_forgetting(rows: list[dict[str, float]]) -> float:
    """Return the relative rise of the error since it was first measured, averaged over the sources of earlier rows.

    0 if there is no earlier source (after Chaudhry et al. 2018, arXiv 1801.10112, with an error for the accuracy).
    """
    first: dict[str, float] = {}
    for row in rows[:-1]:
        first = row | first
    rises = [rows[-1][source] / first[source] - 1 for source in rows[-1] if source in first]
    return math.fsum(rises) / len(rises) if rises else 0.0
