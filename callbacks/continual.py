"""What TensorBoard shows of a continual experiment: the forgetting matrix, scalars, hashes of compartments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from callbacks.figures import history
from cdm_lightning.continual import LESS_IS_BETTER, Row, summary
from cdm_lightning.evaluation import COMPOSED_SIGMA
from cdm_lightning.text_tables import markdown

AXIS = "after this event"
SHOWN = 12  # hex digits of a hash


def log_row(folder: Path, rows: Sequence[Row]) -> None:
    """Log the last row into `folder`, in a file of its own, so that it can be deleted with the sources that it is of.

    Figures, averages and hashes are of the rows in which no source took part that has left since: the store keeps
    nothing of such a source.

    Args:
        folder: of the run in TensorBoard.
        rows: all rows so far; the step is their number.
    """
    row, step, shown = rows[-1], len(rows), of_those_present(rows)
    board = SummaryWriter(str(folder))
    for name in LESS_IS_BETTER:
        for source, value in row[name].items():
            board.add_scalar(f"{name}/{source}", value, step)
    for name, value in (row["scores"] or {}).items():
        board.add_scalar(f"composed/{name}", value, step)
    found = summary(shown)
    for name in LESS_IS_BETTER:
        for measure in ("average_forgetting", "backward_transfer"):
            if found[name][measure] is not None:
                board.add_scalar(f"forgetting/{measure}_{name}", found[name][measure], step)
    board.add_figure("forgetting/matrix", matrix(shown), step)
    board.add_figure("forgetting/competition", competition(shown), step)
    if row["accuracy"]:
        board.add_figure("forgetting/accuracy", accuracies(shown), step)
    board.add_text("forgetting/compartments", markdown(hashes(shown)), step)
    board.close()


def of_those_present(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in which no source took part that has left since; who left is not named."""
    gone = {source for row in rows for source in row["leave"]}
    shown = [row for row in rows if not gone & set(row["sources"])]
    return [row | {"event": f"{len(row['leave'])} left"} if row["leave"] else row for row in shown]


def matrix(rows: Sequence[Row]) -> Figure:
    """Draw the composed model's held-out error on every source after every event."""
    title = f"held-out error of the composed\nmodel at sigma {COMPOSED_SIGMA:g}"
    return history([row["heldout_error"] for row in rows], title, _labels(rows), AXIS, ".5f")


def competition(rows: Sequence[Row]) -> Figure:
    """Draw by how many per cent the composed model's error is above that of the true source's own denoiser."""
    shares = [
        {source: 100 * (error / row["own_error"][source] - 1) for source, error in row["heldout_error"].items()}
        for row in rows
    ]
    title = f"composed error over the source's\nown, per cent, at sigma {COMPOSED_SIGMA:g}"
    return history(shares, title, _labels(rows), AXIS, "+.2f")


def accuracies(rows: Sequence[Row]) -> Figure:
    """Draw the share of every source's held-out images that are credited to it."""
    title = "share of held-out images that are\ncredited to their source"
    return history([row["accuracy"] for row in rows], title, _labels(rows), AXIS, ".2f")


def hashes(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of the sha256 of every compartment after every event: each column must be constant."""
    sources = list(dict.fromkeys(source for row in rows for source in row["sources"]))
    cells = [[row["compartments_sha256"].get(source, "")[:SHOWN] for source in sources] for row in rows]
    return [["event", *sources], *([row["event"], *some] for row, some in zip(rows, cells, strict=True))]


def _labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["event"] for row in rows]
