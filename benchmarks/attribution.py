"""Which credit tells what a coalition of sources is worth to an image? Methods of `attribute` against two truths.

    python -m benchmarks.attribution --store stores/ours --root shards/classes --label classes

Linear datamodeling score over all coalitions but nobody, and rank correlation with the truth's own Shapley values; see
`benchmarks.coalition_truth`. `worth` is the rank correlation, over the same coalitions, of what they are worth with
what the method says of them as a whole: its game, or the log density that its posterior credits imply. `total lds` and
`total worth` are the same of all images together, of the mean of what coalitions are worth to them. `ceilings` are the
scores of credits that know the truth: its own Shapley values, the least squares fit of its worth by sums, and the best
sums that there are (`benchmarks.additive_orders`). The truth `trained` has six coalitions alone, so no Shapley values
(`benchmarks.coalition_prompts`); `agree` is the rank correlation of two truths, over the coalitions that both have, and
of the first two with themselves under the next seed, for each image and of all images together. attribution.json holds
an entry per label.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import coalition_prompts
from benchmarks.additive_orders import best_sums, numbers
from benchmarks.coalition_truth import DRAWS, LEVELS, LOWEST, Truth
from benchmarks.datamodeling import (
    additive_fit,
    lds,
    mean_with_interval,
    posterior_worth,
    rank_correlation,
    total_with_interval,
)
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_methods import OF_COALITIONS, CreditSettings, credit, game_of
from cdm_lightning.images import from_uint8
from cdm_lightning.near_copies import nearest_distances
from cdm_lightning.packing import open_compartments
from cdm_lightning.shapley import coalitions, leave_one_out, shapley_values
from cdm_lightning.store import Store
from cdm_lightning.validate_command import shard_data

METHODS = {
    "weights": CreditSettings("weights"),
    "gaussians": CreditSettings("gaussians"),
    "network": CreditSettings("network", draws=4),
    "loo by gaussians": CreditSettings("loo"),
    "shapley by gaussians": CreditSettings("shapley"),
    "loo by network": CreditSettings("loo", "network", draws=8),
    "shapley by network": CreditSettings("shapley", "network", draws=8),
}
TRUTHS = ("monoliths", "ratio", "trained")
NAME = "attribution.json"


@dataclass(frozen=True)
class Said:
    """What a method says of images.

    Attributes:
        value: credits [source, image].
        worth: of all coalitions but nobody [coalition, image], up to a constant of the image; None if it says nothing.
        cost: network evaluations and seconds per image.
    """

    value: Tensor
    worth: Tensor | None
    cost: dict[str, float]

    @classmethod
    def of(cls, sources: Compartments, x_0: Tensor, settings: CreditSettings) -> "Said":
        """Ask a method."""
        before, start, members = sources.evaluations, time.perf_counter(), coalitions(len(sources))
        if settings.method in OF_COALITIONS:
            game = game_of(sources, x_0, settings)
            rule = leave_one_out if settings.method == "loo" else shapley_values
            value = rule(game, len(sources)).mean(1)
        else:
            value = credit(sources, x_0, settings).value
        seconds = (time.perf_counter() - start) / len(x_0)
        cost = {"evaluations": (sources.evaluations - before) / len(x_0), "seconds": seconds}
        if settings.method in OF_COALITIONS:
            return cls(value, game(members)[1:].mean(1), cost)
        return cls(value, posterior_worth(value, torch.tensor(list(sources.prior().values())), members[1:]), cost)

    @classmethod
    def free(cls, value: Tensor) -> "Said":
        """Return credits that no method gave."""
        return cls(value, None, {"evaluations": 0.0, "seconds": 0.0})


@dataclass(frozen=True)
class Known:
    """What is true of images.

    Attributes:
        members: coalitions, none of them nobody, bool [coalition, source].
        worth: theirs [coalition, image].
        own: the Shapley values of the worth [source, image]; None if it is not known of all coalitions.
    """

    members: Tensor
    worth: Tensor
    own: Tensor | None = None

    @classmethod
    def of_all(cls, worth: Tensor) -> "Known":
        """Return what the worth of all coalitions, and before them that of nobody, says."""
        players = len(worth).bit_length() - 1
        own = shapley_values(lambda asked: worth[numbers(asked)], players)
        return cls(coalitions(players)[1:], worth[1:], own)


def scores(known: Known, said: Said, seed: int) -> dict[str, list[float]]:
    """Return the scores of what a method says."""
    sums = known.members.double() @ said.value.double()
    found = {
        "lds": mean_with_interval(lds(known.worth, known.members, said.value), seed),
        "total lds": total_with_interval(known.worth, sums, seed),
    }
    if known.own is not None:
        found["spearman"] = mean_with_interval(rank_correlation(known.own, said.value), seed)
    if said.worth is not None:
        worth = said.worth[numbers(known.members) - 1]
        found["worth"] = mean_with_interval(rank_correlation(known.worth, worth), seed)
        found["total worth"] = total_with_interval(known.worth, worth, seed)
    return found


def ceilings(known: Known, again: Known, seed: int) -> dict[str, dict[str, Any]]:
    """Return the scores of credits that know the worth of all coalitions: of this worth, and of a second run's."""
    assert known.own is not None
    together = best_sums(known.worth.mean(1, keepdim=True)).expand_as(known.own)
    knowing = {
        "truth's own shapley": known.own,
        "additive fit": additive_fit(known.worth, known.members),
        "best sums": best_sums(known.worth),
        "best sums, all images together": together,
    }
    return {
        name: scores(known, Said.free(value), seed) | {"again": scores(again, Said.free(value), seed)}
        for name, value in knowing.items()
    }


def agreement(one: Known, other: Known, seed: int) -> dict[str, list[float]]:
    """Return the rank correlation of two truths over the coalitions that both have, for each image and together."""
    mine, theirs = numbers(one.members).tolist(), numbers(other.members).tolist()
    both = [number for number in mine if number in theirs]
    a, b = (known.worth[[found.index(number) for number in both]] for known, found in ((one, mine), (other, theirs)))
    return {"each": mean_with_interval(rank_correlation(a, b), seed), "together": total_with_interval(a, b, seed)}


def found_truth(name: str, truth: Truth, public: Tensor, options: argparse.Namespace) -> Known:
    """Return the truth that is asked for."""
    if name == "trained":
        work = Path(options.work) / options.label
        models = coalition_prompts.trained_coalitions(Store.open(Path(options.store)), truth.train, work)
        return Known(coalition_prompts.members(), torch.stack([truth.worth(model) for model in models]).double())
    members = coalitions(len(truth.train))
    if name == "monoliths":
        return Known.of_all(truth.monoliths(members).double())
    return Known.of_all(truth.composed_by_ratio(truth.sources(), public, options.train)(members).mean(1).double())


def found_truths(
    names: Sequence[str], truth: Truth, public: Tensor, options: argparse.Namespace
) -> tuple[dict[str, Known], dict[str, float]]:
    """Return the truths that are asked for, and the seconds that each took."""
    found, seconds = {}, {}
    for name in names:
        start = time.perf_counter()
        found[name] = found_truth(name, truth, public, options)
        seconds[name] = time.perf_counter() - start
        print(name, f"{seconds[name]:.0f} s", flush=True)
    return found, seconds


def measure(truth: Truth, public: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return the scores of the methods against the truths that are asked for."""
    sources = truth.sources()
    truths, seconds = found_truths(options.truths, truth, public, options)
    of_all = [name for name in options.truths if name != "trained"]
    again, _ = found_truths(of_all, replace(truth, seed=truth.seed + 1), public, options)
    rows: dict[str, Any] = {}
    grey = ((truth.x_0 + 1) * 127.5).round()
    pixels = torch.stack([-nearest_distances(grey, (x + 1) * 127.5) for x in truth.train.values()])
    said = {"nearest image": Said.free(pixels), "equal": Said.free(torch.ones_like(pixels))}
    for name in [*said, *options.methods]:
        own = said[name] if name in said else Said.of(sources, truth.x_0, METHODS[name])
        rows[name] = {true: scores(known, own, truth.seed) for true, known in truths.items()} | {"cost": own.cost}
        print(name, *(f"{true} {rows[name][true]}" for true in truths), flush=True)
    agree = {f"{a}, {b}": agreement(truths[a], truths[b], truth.seed) for a, b in combinations(truths, 2)}
    return {
        "methods": rows,
        "seconds_of_truths": seconds,
        "ceilings": {name: ceilings(truths[name], again[name], truth.seed) for name in of_all},
        "agree": agree | {f"{name}, again": agreement(truths[name], again[name], truth.seed) for name in of_all},
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "label"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sources", nargs="*", help="of the root; by default the first five")
    parser.add_argument("--images", type=int, default=12, help="held-out images of each source")
    parser.add_argument("--train", type=int, default=1000, help="training images of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truths", nargs="+", choices=TRUTHS, default=TRUTHS)
    parser.add_argument("--work", default="out/attribution", help="folder of shards and stores of the truth `trained`")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args(words)


def main() -> None:
    """Measure one store's sources and write the entry of its label."""
    options = arguments()
    store = Store.open(Path(options.store))
    data = shard_data(store, Path(options.root), None)
    names = options.sources or data.available_sources()[:5]
    train = {name: from_uint8(data.images(name, "train")[1][: options.train]) for name in names}
    x_0 = torch.cat([from_uint8(data.images(name, "heldout")[1][: options.images]) for name in names])
    opened = open_compartments(store, store.sources()[:1], sigma_switch=None, device="cpu")
    with torch.inference_mode():
        found = measure(Truth(opened, train, x_0, options.seed), from_uint8(data.images("public", "train")[1]), options)
    file = RESULTS / NAME
    result = json.loads(file.read_text()) if file.exists() else {}
    result[options.label] = found | {
        "sources": names,
        "images_per_source": options.images,
        "training_images_per_source": options.train,
        "draws": {name: METHODS[name].draws for name in options.methods},
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
