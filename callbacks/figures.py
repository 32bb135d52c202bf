"""Figures for TensorBoard: labelled rows of images, matrices, and curves over sigma; one colour per source."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from torch import Tensor

from cdm_lightning.images import to_uint8
from cdm_lightning.source_colours import colours


def image_rows(rows: dict[str, Tensor], title: str, sources: Sequence[str]) -> Figure:
    """Draw one row of images per name; each is [n, channel, height, width] in [-1, 1]. Sources have their colour."""
    colour = dict(zip(sources, colours(sources), strict=True))
    n = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.6 + 0.7 * n, 0.5 + 0.75 * len(rows)), dpi=120)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        framed = torch.nn.functional.pad(to_uint8(images), (0, 1), value=255)
        paint(axis, torch.cat(list(framed), dim=-1)[..., :-1])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        if name in colour:
            axis.spines["left"].set(color=colour[name], linewidth=6)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure


def paint(axis: Axes, image: Tensor) -> None:
    """Show an image, uint8 [channel, height, width], without ticks."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])


def path_rows(paths: Tensor, sigmas: Sequence[float], sigma_switch: float) -> Figure:
    """Draw the way of each image from noise to the end: paths [image, state, channel, height, width].

    A state begins the step at its noise level in `sigmas`; the last one is the sample. A red line marks the switch.
    """
    shown = [*range(0, len(sigmas), 2), len(sigmas)]
    size = paths.shape[-1] + 1
    figure = Figure(figsize=(1.2 + 0.85 * len(shown), 1.4 + 0.85 * len(paths)), dpi=120)
    axis = figure.subplots()
    framed = torch.nn.functional.pad(to_uint8(paths[:, shown].flatten(0, 1)), (0, 1, 0, 1), value=255)
    canvas = framed.unflatten(0, (len(paths), len(shown))).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).cpu()
    image = canvas.numpy()
    axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
    labels = [f"{sigmas[state]:.3g}" if state < len(sigmas) else "x_0" for state in shown]
    axis.set_xticks([size * (k + 0.5) for k in range(len(shown))], labels, fontsize=8)
    axis.set_yticks([])
    axis.set_xlabel("sigma; right of the red line the network denoises, left of it the closed forms")
    above = sum(1 for state in shown if state < len(sigmas) and sigmas[state] > sigma_switch)
    axis.axvline(size * above - 1, color="red", linewidth=1.5)
    axis.set_title("from noise to image", fontsize=10)
    figure.tight_layout()
    return figure


def paint_ticks(axis: Axis, sources: Sequence[str]) -> None:
    """Make the mark of every tick a square in the colour of its source."""
    for tick, colour in zip(axis.get_major_ticks(), colours(sources), strict=True):
        tick.tick1line.set(marker="s", markersize=7, color=colour)


def paint_weights(
    axis: Axes, sigmas: Sequence[float], weights: Tensor, sources: Sequence[str], sigma_switch: float, line: float
) -> None:
    """Stack the weights [source, level] in the colours of their sources; a red line, so wide, is at the switch."""
    axis.stackplot(
        sigmas, weights.cpu().numpy(), labels=sources, colors=colours(sources), edgecolor="white", linewidth=0.3
    )
    if math.isfinite(sigma_switch):
        axis.axvline(sigma_switch, color="red", linewidth=line, label="switch")


def shares(sigmas: Sequence[float], weights: Tensor, sources: Sequence[str], sigma_switch: float) -> Figure:
    """Draw the mean weight of every source [source, level] on the way from noise to image, stacked."""
    figure = Figure(figsize=(6.4, 4.0), dpi=120)
    axis = figure.subplots()
    paint_weights(axis, sigmas, weights, sources, sigma_switch, line=1.5)
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xlabel("sigma, falling as the sampler goes")
    axis.set_ylabel("mean weight")
    axis.set_title("weights of the sources along the sampling path", fontsize=10)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def courses(
    images: Tensor, sigmas: Sequence[float], weights: Tensor, sources: Sequence[str], sigma_switch: float
) -> Figure:
    """Draw each image in [-1, 1] above its own weights [image, source, level] on the way from noise to it, stacked."""
    columns = min(len(images), 5)
    lines = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.5 * columns, 1.9 * lines), dpi=120, layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat[:]:
        axis.set_axis_off()
    for k, (image, weight) in enumerate(zip(to_uint8(images), weights, strict=True)):
        above, below = (axes[2 * (k // columns) + place, k % columns] for place in (0, 1))
        paint(above, image)
        below.set_axis_on()
        paint_weights(below, sigmas, weight, sources, sigma_switch, line=1.2)
        below.set(xscale="log", xlim=(max(sigmas), min(sigmas)), ylim=(0, 1), yticks=[])
        below.tick_params(labelsize=6)
    return figure


def reliability(confidence: Sequence[float], accuracy: Sequence[float], images: Sequence[int]) -> Figure:
    """Draw how often the largest credit names the true source, by its size; a point's area is its number of images."""
    figure = Figure(figsize=(4.4, 4.0), dpi=120)
    axis = figure.subplots()
    axis.plot((0, 1), (0, 1), color="0.6", linewidth=1, label="as often as it says")
    axis.scatter(confidence, accuracy, s=[30 + 600 * n / sum(images) for n in images], alpha=0.5)
    for x, y, n in zip(confidence, accuracy, images, strict=True):
        axis.annotate(f"{n:,}", (x, y), ha="center", va="center", fontsize=7)
    axis.set(xlabel="largest credit", ylabel="share that is right", xlim=(0, 1.05), ylim=(-0.05, 1.08))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def matrix(values: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draw a matrix [true source, credited source] of shares, with its numbers."""
    size = 2.2 + 0.55 * len(names)
    figure = Figure(figsize=(size, size), dpi=120)
    axis = figure.subplots()
    axis.imshow(values.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(ticks, names, fontsize=8)
    paint_ticks(axis.xaxis, names)
    paint_ticks(axis.yaxis, names)
    axis.set_xlabel("credited source")
    axis.set_ylabel("true source")
    for i in ticks:
        for j in ticks:
            share = float(values[i, j])
            axis.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "k")
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def curves(
    sigmas: Sequence[float], lines: Mapping[str, Sequence[float]], title: str, unit: str, sources: Sequence[str] = ()
) -> Figure:
    """Draw named curves over the noise level, rising to the right on a logarithmic axis; a source has its colour."""
    colour = dict(zip(sources, colours(sources), strict=True))
    figure = Figure(figsize=(6.4, 4.0), dpi=120)
    axis = figure.subplots()
    for name, values in lines.items():
        axis.plot(sigmas, values, marker="o", markersize=3, label=name, color=colour.get(name))
    axis.set_xscale("log")
    axis.set_xlabel("sigma, in units of x_0 (an image spans -1 to 1)")
    axis.set_ylabel(unit)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def history(
    rows: Sequence[Mapping[str, float]], title: str, labels: Sequence[str], axis_name: str, form: str = ".4f"
) -> Figure:
    """Draw a number per source and row: one labelled row per validation, a cell where the source was there."""
    sources = list(dict.fromkeys(source for row in rows for source in row))
    values = torch.tensor([[row.get(source, float("nan")) for source in sources] for row in rows])
    figure = Figure(figsize=(2.6 + 0.62 * len(sources), 1.8 + 0.38 * len(rows)), dpi=120)
    axis = figure.subplots()
    axis.imshow(values.numpy(), cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(sources)), sources, rotation=60, ha="right", fontsize=8)
    paint_ticks(axis.xaxis, sources)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_xlabel("source")
    axis.set_ylabel(axis_name)
    numbers = [number for row in rows for number in row.values()]
    bright = min(numbers) + 0.6 * (max(numbers) - min(numbers))
    for i, row in enumerate(rows):
        for j, source in enumerate(sources):
            if source in row:
                colour = "w" if row[source] <= bright else "k"
                axis.text(j, i, f"{row[source]:{form}}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure
