"""Figures for TensorBoard: labelled rows of images, and matrices."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from cdm_lightning.images import to_uint8


def image_rows(rows: dict[str, Tensor], title: str) -> Figure:
    """Draw one row of images per name; each is [n, channel, height, width] in [-1, 1]."""
    n = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.6 + 0.7 * n, 0.5 + 0.75 * len(rows)), dpi=120)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        framed = torch.nn.functional.pad(to_uint8(images), (0, 1), value=255)
        strip = torch.cat(list(framed), dim=-1)[..., :-1].permute(1, 2, 0).cpu().numpy()
        axis.imshow(strip if strip.shape[2] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int) -> None:
    """Give a figure to every TensorBoard logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, step)


def matrix(values: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draw a matrix [true source, credited source] of shares, with its numbers."""
    size = 2.2 + 0.55 * len(names)
    figure = Figure(figsize=(size, size), dpi=120)
    axis = figure.subplots()
    axis.imshow(values.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set_xlabel("credited source")
    axis.set_ylabel("true source")
    for i in ticks:
        for j in ticks:
            share = float(values[i, j])
            axis.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "k")
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure
