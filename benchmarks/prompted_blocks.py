"""Tokens in the last blocks of a plain U-ViT (`prompted`): the held-out error of owners whose prompts have these alone.

    python -m benchmarks.prompted_blocks --root out/quality/shards/classes --work out/prompted --name prompted_blocks

One backbone is trained on `public`, and copied for each number of blocks; the tokens of every owner are trained in as
many steps. What is finished is skipped. Errors are of each owner's own denoiser on its own held-out images.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.backbones import write_backbone_like
from benchmarks.quality_stores import NO_GUIDE, PATCHES_OF_7, UVIT
from benchmarks.store_report import RESULTS, heldout_images
from benchmarks.versions import versions
from cdm_lightning.backbone import UViT
from cdm_lightning.cli import main as command
from cdm_lightning.evaluation import SIGMAS, heldout_error
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.refit import QUIET
from cdm_lightning.store import BACKBONE, Store
from cdm_lightning.tensor_files import write_report
from cdm_lightning.text_tables import markdown

DEPTH = 5  # blocks of the network; where all see tokens, that is not noted
BLOCKS = (DEPTH, 4, 3)
RATES = ("--model.learning_rate", "1e-3", "--model.prompt_learning_rate", "1e-2")
STEPS = 200  # of each owner's tokens


def fit(root: str, place: Path, *options: str) -> None:
    """Fit into a store as `fashion_shards.yaml` says, on a plain U-ViT."""
    where = ["--store", str(place), "--data.root", root]
    network = [*UVIT, *PATCHES_OF_7, *NO_GUIDE, *RATES]
    if command(["fit", "--config", "fashion_shards.yaml", *where, *network, *QUIET, *options]):
        raise SystemExit(f"{place} could not be fitted")


def with_blocks(base: Store, place: Path, blocks: int) -> None:
    """Make a store of the same network of which so many blocks see tokens."""
    if (place / BACKBONE).exists():
        return
    network, public = unpack_backbone(*base.read_backbone())
    described = dict(base.read_backbone()[1]["backbone"])
    described["init_args"] = network.init_args | ({} if blocks == DEPTH else {"prompted": blocks})
    again = UViT(**described["init_args"])
    again.load_state_dict(network.state_dict())
    write_backbone_like(base, place, again, public, {"backbone": described})


def errors(store: Store, root: str) -> list[float]:
    """Return the mean over the owners of the error of each one's denoiser, by sigma."""
    compartments = open_compartments(store, "all", sigma_switch=float("inf"), device="cpu")
    images = heldout_images(store, root, store.sources())
    rows = [heldout_error(compartments[source], x_0) for source, x_0 in images.items()]
    return torch.tensor(rows).mean(0).tolist()


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("root", "work", "name"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    work = Path(options.work)
    fit(options.root, work / "base", "--data.sources", "[]")
    found: dict[str, list[float]] = {}
    for blocks in BLOCKS:
        place = work / f"blocks-{blocks}"
        prompted = () if blocks == DEPTH else ("--model.backbone.init_args.prompted", str(blocks))
        with_blocks(Store.open(work / "base"), place, blocks)
        tokens = ("--model.compartment", "tokens", "--trainer.max_steps", str(STEPS))
        fit(options.root, place, *prompted, *tokens)
        found[str(blocks)] = errors(Store.open(place), options.root)
    result: dict[str, Any] = {"sigma": SIGMAS, "mse": found, "steps": STEPS, "seed": 0, "versions": versions()}
    write_report(RESULTS / f"{options.name}.json", result)
    head = ["blocks with tokens", *(f"{sigma:g}" for sigma in SIGMAS)]
    print(markdown([head, *([blocks, *(f"{value:.5f}" for value in row)] for blocks, row in found.items())]))


if __name__ == "__main__":
    main()
