"""Coalitions of sources as models with trained prompts: each a full copy of the backbone, trained on their images.

The images of every coalition are written as those of one owner, and fitted by the command `fit`, as for a monolith of
`benchmarks.quality`: drafts out of fold, as many clusters as the members have together.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.backbones import copy_backbone, options_of
from benchmarks.quality import QUIET, Step, one
from benchmarks.quality_stores import CLUSTERS, CONFIG, FULL_RATE
from cdm_lightning.compartments import Compartments
from cdm_lightning.images import encode_png, to_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store

CHOSEN = ((0,), (1, 2), (3, 4), (0, 1, 3), (0, 2, 3, 4), (0, 1, 2, 3, 4))  # which of five sources, by their place
STEPS = 300  # of training, for each coalition


def members() -> Tensor:
    """Return bool [coalition, source]."""
    return torch.tensor([[source in coalition for source in range(5)] for coalition in CHOSEN])


def trained_coalitions(backbone: Store, train: Mapping[str, Tensor], work: Path) -> list[Compartments]:
    """Return a model of each of CHOSEN, that of one source; what is in `work` already is not made again.

    Args:
        backbone: a store with the backbone.
        train: training images in [-1, 1] of five sources.
        work: folder of images, shards, store and logs.
    """
    shards, place = work / "shards", work / "store"
    (work / "logs").mkdir(parents=True, exist_ok=True)
    if not shards.is_dir():
        images = work / "images"
        for coalition in CHOSEN:
            write_images(torch.cat([list(train.values())[i] for i in coalition]), images / name_of(coalition))
        where = ["--from", "folder", "--input", str(images), "--split", "folder", "--out", str(shards)]
        shape = ["--size", str(backbone.info.image_shape[1]), "--channels", str(backbone.info.image_shape[0])]
        one("shards", Step(["shards", *where, *shape]), work / "logs")
    copy_backbone(backbone.path, place)
    for coalition in CHOSEN:
        name = name_of(coalition)
        where = ["--store", str(place), "--data.root", str(shards), "--data.split", "folder", "--data.from", "folder"]
        what = ["--data.sources", f"[{name}]", "--model.compartment", "full", *FULL_RATE, *options_of(place)]
        size = ["--model.clusters", str(CLUSTERS * len(coalition)), "--trainer.max_steps", str(STEPS)]
        one(name, Step(["fit", "--config", CONFIG, *where, *what, *size, *QUIET]), work / "logs")
    store = Store.open(place)
    return [open_compartments(store, [name_of(one)], sigma_switch=None, device="cpu") for one in CHOSEN]


def name_of(coalition: tuple[int, ...]) -> str:
    """Return the name of a coalition as a source."""
    return "of-" + "-".join(map(str, coalition))


def write_images(images: Tensor, folder: Path) -> None:
    """Write images in [-1, 1] as PNG."""
    folder.mkdir(parents=True)
    for k, image in enumerate(to_uint8(images)):
        (folder / f"{k:05d}.png").write_bytes(encode_png(image))
