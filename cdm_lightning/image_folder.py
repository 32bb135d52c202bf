"""A folder of images with their credits, as `sample` and `restore` leave it: pictures, a grid, credits.json."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.attribution import credits_of
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.credit_bars import annotated
from cdm_lightning.errors import BadInput
from cdm_lightning.generation import Batch
from cdm_lightning.images import encode_png
from cdm_lightning.sheets import enlarged, grid
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import write_report

SHEET, CREDITS = "grid.png", "credits.json"


def image_rows(
    credited: ComposedDenoiser, batch: Batch, indices: range, floor: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield what credits.json says of each image."""
    credit = credits_of(credited, batch.images.clamp(-1, 1), floor, seed)
    for row, k in enumerate(indices):
        course = [[sigma, by_source(credited.sources, weights[:, row])] for sigma, weights in batch.trajectory]
        yield {
            "file": f"{k:05d}.png",
            "credits": by_source(credited.sources, credit[:, row]),
            "drawn": None if batch.drawn is None else batch.drawn[row],
            "trajectory": course,
        }


def by_source(sources: Sequence[str], weights: Tensor) -> dict[str, float]:
    """Return weights [source] by name, to six decimals."""
    return {source: round(float(weight), 6) for source, weight in zip(sources, weights, strict=True)}


def make_folder(out: Path, store: Store, sources: Sequence[str], sha256: Mapping[str, str]) -> None:
    """Make the folder of images that were made of these sources' compartments, if the store still has all of them.

    A source that is forgotten from now on finds the folder, so it is either listed in the receipt or not written to.

    Args:
        out: the folder.
        store: the store.
        sources: their names.
        sha256: of the tensors of each source (see `Store.tensors_sha256`), from before they were read.

    Raises:
        BadInput: a source has been forgotten or fitted again meanwhile.
    """
    out.mkdir(parents=True, exist_ok=True)
    if changed := changed_since(store, sources, sha256):
        with suppress(OSError):
            out.rmdir()
        raise BadInput(f"the images are not kept: {changed} while they were made; make them anew")


def changed_since(store: Store, sources: Sequence[str], sha256: Mapping[str, str]) -> str | None:
    """Return what became of the first source that is not as it was, in words; None if all are. See `make_folder`."""
    now = store.tensors_sha256(sources)
    gone = next((source for source in sources if now.get(source) != sha256.get(source)), None)
    if gone is None:
        return None
    return f"source '{gone}' was {'fitted again' if gone in now else 'forgotten'}"


def write_pictures(out: Path, images: Tensor, report: dict[str, Any], sheet: Tensor | None = None) -> None:
    """Write images, uint8 [n, channel, height, width], grid (or `sheet`) and credits; credits.json comes last."""
    for old in out.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for k, image in enumerate(images):
        (out / f"{k:05d}.png").write_bytes(encode_png(image))
    (out / SHEET).write_bytes(encode_png(grid(images) if sheet is None else sheet))
    write_report(out / CREDITS, report)


def credited_grid(images: Tensor, report: dict[str, Any]) -> Tensor:
    """Return a near-square grid of images, uint8 [n, channel, height, width], with the credits that a report holds."""
    sources = list(report["images"][0]["credits"])
    shares = torch.tensor([[row["credits"][source] for row in report["images"]] for source in sources])
    return annotated(enlarged(images), shares, sources, math.ceil(math.sqrt(len(images))))
