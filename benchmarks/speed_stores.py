"""What `benchmarks.speed` works on: shards of made-up images, a guided store, a plain one, and one of many owners.

What is timed depends on shapes and numbers alone, so images are smooth noise and backbones are trained for one step.
"""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from benchmarks.backbones import copy_backbone
from benchmarks.quality_stores import UVIT
from cdm_lightning.cli import main
from cdm_lightning.compartment import Compartment
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import to_uint8
from cdm_lightning.packing import open_compartments, pack_compartment
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store

OWNERS = [f"owner{k}" for k in range(8)]
SIZE, IMAGES, OF_OWNER, OF_PUBLIC = 28, 6000, 750, 600
CONFIG = ("--config", "fashion_shards.yaml")
NETWORKS = {"ConvNet": (), "U-ViT": (*UVIT, "--model.backbone.init_args.patch_size", "4")}
PLAIN = ("--model.guide", "none", "--model.sigma_switch", "inf")
QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--metrics.extractor", "none")


def command(*words: object) -> None:
    """Run a command of the project in this process, silently.

    Raises:
        RuntimeError: it failed.
    """
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # of a command line that cannot be parsed
            code = 2 if end.code is None else int(end.code)
    if code:
        raise RuntimeError(f"{words[0]} ended with {code}: {said.getvalue()}")


def write_images(folder: Path, count: int, size: int, channels: int) -> None:
    """Write smooth noise as PNG files."""
    folder.mkdir(parents=True)
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=generator("speed", folder.name))
    images = to_uint8(0.5 * interpolate(coarse, (size, size), mode="bicubic"))
    for k, image in enumerate(images):
        pixels = image[0] if channels == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{k:05d}.png")


def write_shards(work: Path, name: str, sources: dict[str, int], size: int, channels: int, shards: int = 4) -> Path:
    """Write so many shards of every source, with so many images each; return their folder."""
    for source, count in sources.items():
        write_images(work / f"images-{name}" / source, count, size, channels)
    root = work / f"shards-{name}"
    origin = ("--from", "folder", "--input", work / f"images-{name}", "--size", size, "--channels", channels)
    rest = ("--shards-per-source", shards, "--heldout-fraction", 0, "--out", root)
    command("shards", *origin, *rest)
    return root


def fit(store: Path, root: Path, sources: list[str], *options: object) -> None:
    """Fit sources into a store, as the quality benchmark does; its backbone is trained for one step."""
    where = ("--store", store, "--data.root", root, "--data.split", "folder", "--data.heldout_fraction", 0)
    short = ("--data.public_classes", "null", "--model.backbone_steps", 1)
    command("fit", *CONFIG, *where, *short, *QUIET, "--data.sources", f"[{', '.join(sources)}]", *options)


def write_many(place: Path, like: Store, count: int) -> Store:
    """Write a store of `count` owners of 60 images each, one Gaussian each; return it."""
    opened = open_compartments(like, OWNERS, sigma_switch=None, device="cpu")
    copy_backbone(like.path, place)
    store, moved = Store.open(place), generator("speed", "many")
    for k in range(count):
        own = opened.compartments[OWNERS[k % len(OWNERS)]].fine
        one = own.nearest(own.mean[(k // len(OWNERS)) % len(own.mean)])
        form = replace(one, mean=one.mean + 0.1 * torch.randn(one.mean.shape, generator=moved))
        card = replace(like.read_card(OWNERS[0]), source=f"owner{k}", n=60, class_counts={})
        store.write_compartment(pack_compartment(_alone(form)), card)
    return store


def _alone(form: Gaussians) -> Compartment:
    return Compartment(60, form, form)
