"""Which credit tells what a coalition of sources is worth to an image? Methods of `attribute` against two truths.

    python -m benchmarks.attribution --store stores/ours --root shards/classes --label classes

Linear datamodeling score over all coalitions but nobody, and rank correlation with the truth's own Shapley values; see
`benchmarks.coalition_truth`. attribution.json holds an entry per label.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.coalition_truth import DRAWS, LEVELS, LOWEST, Truth
from benchmarks.datamodeling import lds, mean_with_interval, rank_correlation
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_methods import CreditSettings, credit
from cdm_lightning.images import from_uint8
from cdm_lightning.near_copies import nearest_distances
from cdm_lightning.packing import open_compartments
from cdm_lightning.shapley import coalitions, shapley_values
from cdm_lightning.store import Store
from datamodules import ShardDataModule

METHODS = {
    "weights": CreditSettings("weights"),
    "gaussians": CreditSettings("gaussians"),
    "network": CreditSettings("network", draws=4),
    "loo by gaussians": CreditSettings("loo"),
    "shapley by gaussians": CreditSettings("shapley"),
    "loo by network": CreditSettings("loo", "network", draws=8),
    "shapley by network": CreditSettings("shapley", "network", draws=8),
}
NAME = "attribution.json"


def credits_and_cost(sources: Compartments, x_0: Tensor, settings: CreditSettings) -> tuple[Tensor, dict[str, float]]:
    """Return values [source, image], and what they cost per image."""
    before, start = sources.evaluations, time.perf_counter()
    value = credit(sources, x_0, settings).value
    seconds = (time.perf_counter() - start) / len(x_0)
    return value, {"evaluations": (sources.evaluations - before) / len(x_0), "seconds": seconds}


def scores(worth: Tensor, value: Tensor, seed: int) -> dict[str, list[float]]:
    """Return the scores of credits [source, image] against the worth of all coalitions [coalition, image]."""
    members = coalitions(len(value))

    def game(asked: Tensor) -> Tensor:
        return worth[(asked.long() * 2 ** torch.arange(len(value))).sum(1)]

    return {
        "lds": mean_with_interval(lds(worth[1:], members[1:], value), seed),
        "spearman": mean_with_interval(rank_correlation(shapley_values(game, len(value)), value), seed),
    }


def measure(truth: Truth, public: Tensor, head_images: int) -> dict[str, Any]:
    """Return the scores of every method against both truths."""
    sources, members = truth.sources(), coalitions(len(truth.train))
    worth: dict[str, Tensor] = {}
    makers: dict[str, Callable[[], Tensor]] = {
        "monoliths": lambda: truth.monoliths(members),
        "ratio": lambda: truth.composed_by_ratio(sources, public, head_images)(members).mean(1),
    }
    seconds = {}
    for name, make in makers.items():
        start = time.perf_counter()
        worth[name] = make().double()
        seconds[name] = time.perf_counter() - start
        print(name, f"{seconds[name]:.0f} s", flush=True)
    rows: dict[str, Any] = {}
    grey = ((truth.x_0 + 1) * 127.5).round()
    pixels = torch.stack([-nearest_distances(grey, (x + 1) * 127.5) for x in truth.train.values()])
    values = {"nearest image": (pixels, {"evaluations": 0.0, "seconds": 0.0})}
    values["equal"] = (torch.ones_like(pixels), {"evaluations": 0.0, "seconds": 0.0})
    for name, settings in METHODS.items():
        values[name] = credits_and_cost(sources, truth.x_0, settings)
    for name, (value, cost) in values.items():
        rows[name] = {true: scores(known, value, truth.seed) for true, known in worth.items()} | {"cost": cost}
        print(name, *(f"{true} {rows[name][true]['lds'][0]:.3f}" for true in worth), flush=True)
    agree = mean_with_interval(rank_correlation(worth["monoliths"][1:], worth["ratio"][1:]), truth.seed)
    return {"methods": rows, "truths_agree": agree, "seconds_of_truths": seconds}


def main() -> None:
    """Measure one store's sources and write the entry of its label."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "label"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sources", nargs="*", help="of the root; by default the first five")
    parser.add_argument("--images", type=int, default=12, help="held-out images of each source")
    parser.add_argument("--train", type=int, default=1000, help="training images of each source")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = Store.open(Path(options.store))
    channels, size, _ = store.info.image_shape
    data = ShardDataModule(options.root, image_size=size, channels=channels)  # type: ignore[arg-type]
    names = options.sources or data.available_sources()[:5]
    train = {name: from_uint8(data.images(name, "train")[1][: options.train]) for name in names}
    x_0 = torch.cat([from_uint8(data.images(name, "heldout")[1][: options.images]) for name in names])
    opened = open_compartments(store, store.sources()[:1], sigma_switch=None, device="cpu")
    with torch.inference_mode():
        found = measure(
            Truth(opened, train, x_0, options.seed), from_uint8(data.images("public", "train")[1]), options.train
        )
    file = RESULTS / NAME
    result = json.loads(file.read_text()) if file.exists() else {}
    result[options.label] = found | {
        "sources": names,
        "images_per_source": options.images,
        "training_images_per_source": options.train,
        "draws": {name: settings.draws for name, settings in METHODS.items()},
        "truth": {"lowest_sigma": LOWEST, "levels": LEVELS, "draws_per_level": DRAWS},
        "floor": opened.public.calibration.floor,
        "backbone_sha256": store.info.backbone_sha256,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
