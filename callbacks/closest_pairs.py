"""The figure of an audit: samples above their nearest training images, most suspicious first."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cdm_lightning.audit import Found


def closest_pairs(pairs: Sequence[Found]) -> Figure:
    """Draw the pairs of every row, those of a row beside each other in the given order."""
    rows = list(dict.fromkeys(found.row for found in pairs))
    by_row = [[found for found in pairs if found.row == row] for row in rows]
    columns = max(map(len, by_row))
    figure = Figure(figsize=(0.6 + 0.95 * columns, 0.5 + 2.4 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(2 * len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, some in enumerate(by_row):
        for j, found in enumerate(some):
            _draw(axes[2 * i, j], found.sample)
            _draw(axes[2 * i + 1, j], found.training)
            axes[2 * i, j].set_title(f"{'' if j else found.row}\n{found.pair.ratio:.2f}", fontsize=8, loc="left")
            axes[2 * i + 1, j].set_title(f"{found.source}\n{found.pair.distance:.3g} {found.pair.space}", fontsize=6)
    figure.suptitle(
        "above: sample, distance / threshold (at most 1 is a near-copy); below: its nearest training image", fontsize=9
    )
    return figure


def _draw(axis: Axes, image: Tensor) -> None:
    shown = image.permute(1, 2, 0).numpy()
    axis.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=255)
