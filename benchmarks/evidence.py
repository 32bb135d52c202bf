"""How well estimators of evidence name the source of held-out images, by noise level.

    python -m benchmarks.evidence --store stores/cifar --root data/cifar --name cifar_evidence

Cross-entropy (nats) and accuracy of the posterior over all sources of a store; `tempered` divides the log densities by
a temperature, fitted at each level on held-out images of `public`, whose classes play sources. Resumable estimator by
estimator: what stands in NAME.json is not computed again.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.evidence_estimators import (
    KEPT,
    KNOTS,
    PASSES,
    RIDGES,
    SIGMAS,
    STEPS_BETWEEN,
    Cast,
    Ratios,
    gaussians,
    kernel,
    network,
    path,
    pseudo_cast,
)
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.attribution import accuracy, cross_entropy
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.public import TEMPERATURES
from cdm_lightning.store import Store
from datamodules import ShardDataModule

Densities = Mapping[float, Tensor]
LEVELS, PAIRS = 8, 1


def by_source(weights: Tensor) -> list[Tensor]:
    """Split weights [source, source * image] into one [source, image] per true source."""
    return list(weights.chunk(len(weights), dim=1))


def loss(density: Tensor, temperature: float) -> float:
    """Return the cross-entropy of the posterior of log densities [source, source * image], in nats; equal priors."""
    return cross_entropy(by_source((density / temperature).softmax(0)))


def judged(real: Densities, pseudo: Densities) -> list[dict[str, float]]:
    """Return the scores at each level, by a temperature that was fitted on the pseudo-sources."""
    scores = []
    for sigma, density in real.items():
        temperature = min(TEMPERATURES.tolist(), key=lambda t: loss(pseudo[sigma], t))
        scores.append(
            {
                "sigma": sigma,
                "cross_entropy": loss(density, 1.0),
                "tempered": loss(density, temperature),
                "temperature": temperature,
                "accuracy": accuracy(by_source(density.softmax(0))),
            }
        )
    return scores


class Benchmark:
    """Casts of the store's sources and of `public`'s classes, and the estimators over both."""

    def __init__(self, store: Store, root: str, images: int, network_images: int, seed: int) -> None:
        channels, size, _ = store.info.image_shape
        data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
        self.compartments = open_compartments(store, "all", sigma_switch=None, device="cpu")
        self.network_images, self.seed = network_images, seed
        train = {source: from_uint8(data.images(source, "train")[1]) for source in self.compartments}
        held_out = [from_uint8(data.images(source, "heldout")[1][:images]) for source in self.compartments]
        self.real = Cast.of(self.compartments, train, held_out, seed)
        parts = {part: data.images("public", part) for part in ("train", "heldout")}  # type: ignore[arg-type]
        self.public = from_uint8(parts["train"][1])
        of_class = {part: _by_label(from_uint8(x), labels) for part, (_, x, labels) in parts.items()}
        names = sorted(of_class["train"])
        shown = [of_class["heldout"][name][:images] for name in names]
        self.pseudo = pseudo_cast(self.compartments, {name: of_class["train"][name] for name in names}, shown, seed)

    def estimators(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return what computes the scores of each estimator, by name."""
        few = self.network_images
        return {
            "kernel": lambda: self.scores(kernel),
            "gaussians": lambda: self.scores(gaussians),
            f"gaussians, first {few}": lambda: self.scores(gaussians, few),
            "ratio": self.ratio,
            "path": lambda: self.scores(path, few),
            "network": lambda: self.scores(lambda cast: network(cast, LEVELS, PAIRS, self.seed), few),
        }

    def scores(self, estimator: Callable[[Cast], Densities], images: int | None = None) -> dict[str, Any]:
        """Return the scores of an estimator on the first images of every source, and the evaluations they cost."""
        real, pseudo = (cast if images is None else cast.first(images) for cast in (self.real, self.pseudo))
        before = self.compartments.evaluations
        densities = estimator(real)
        evaluations = (self.compartments.evaluations - before) / real.path.shape[1]
        return {
            "images_per_source": real.images,
            "evaluations_per_image": evaluations,
            "levels": judged(densities, estimator(pseudo)),
        }

    def ratio(self) -> dict[str, Any]:
        """Return the scores of the heads, with the ridge that is best on the pseudo-sources below the switch."""
        ratios = Ratios(self.compartments, self.public, self.seed)
        pseudo = ratios.of(self.pseudo)
        by_ridge = {ridge: pseudo.logits(pseudo.heads(ridge)) for ridge in RIDGES}
        ridge = min(RIDGES, key=lambda r: sum(loss(d, 1.0) for s, d in by_ridge[r].items() if s <= 1))
        real = ratios.of(self.real)
        heads = real.heads(ridge)
        logits = real.logits(heads)
        return {
            "images_per_source": self.real.images,
            "half_passes_per_level": 1,
            "ridge": ridge,
            "levels": judged(logits, by_ridge[ridge]),
            "error": [_logit_error(sigma, logit) for sigma, logit in logits.items()],
        }


def _logit_error(sigma: float, logit: Tensor) -> dict[str, float]:
    """Return how often a head calls a held-out image of its own, or of another source, its own rather than public."""
    own = torch.eye(len(logit), dtype=torch.bool).repeat_interleave(logit.shape[1] // len(logit), dim=1)
    return {
        "sigma": sigma,
        "own_above_0": float((logit[own] > 0).float().mean()),
        "others_above_0": float((logit[~own] > 0).float().mean()),
        "own_mean_logit": float(logit[own].mean()),
        "others_mean_logit": float(logit[~own].mean()),
    }


def _by_label(images: Tensor, labels: list[str]) -> dict[str, Tensor]:
    return {name: images[torch.tensor([label == name for label in labels])] for name in sorted(set(labels))}


def curves(result: dict[str, Any]) -> Figure:
    """Draw cross-entropy, raw and tempered, and accuracy over the noise level."""
    figure = Figure(figsize=(11, 4.6), dpi=110)
    left, right = figure.subplots(1, 2)
    for number, (name, scores) in enumerate(result["estimators"].items()):
        sigma, colour = [level["sigma"] for level in scores["levels"]], f"C{number}"
        for key, style, label in (("tempered", "-", name), ("cross_entropy", ":", None)):
            left.plot(sigma, [level[key] for level in scores["levels"]], style, color=colour, label=label, marker=".")
        right.plot(sigma, [level["accuracy"] for level in scores["levels"]], color=colour, marker=".")
    chance = math.log(result["sources"])
    left.axhline(chance, color="grey", linewidth=0.8)
    left.annotate("knowing nothing", (SIGMAS[0], chance), ha="right", va="bottom", fontsize=8, color="grey")
    left.set(xscale="log", xlabel="sigma", ylabel="cross-entropy, nats", ylim=(0, 1.5 * chance))
    left.set_title("cross-entropy: lines tempered, dotted raw", fontsize=10)
    right.set(xscale="log", xlabel="sigma", ylabel="accuracy", ylim=(0, 1))
    right.set_title("accuracy", fontsize=10)
    left.legend(fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    """Score every estimator that is not in NAME.json yet, then draw all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=64, help="held-out images of each source")
    parser.add_argument("--network-images", type=int, default=16, help="the same, where the network runs per source")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    file = RESULTS / f"{options.name}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"estimators": {}}
    with torch.inference_mode():
        benchmark = Benchmark(
            Store.open(Path(options.store)), options.root, options.images, options.network_images, options.seed
        )
        result |= {
            "sources": len(benchmark.compartments),
            "sigma_switch": benchmark.compartments.sigma_switch,
            "network": {"levels": LEVELS, "pairs": PAIRS},
            "path": {"steps_between_levels": STEPS_BETWEEN},
            "ratio": {"knots": KNOTS.tolist(), "features": KEPT, "passes_over_a_source": PASSES, "ridges": RIDGES},
            "seed": options.seed,
            "versions": versions(),
        }
        for name, scores in benchmark.estimators().items():
            if name not in result["estimators"]:
                result["estimators"][name] = scores()
                file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
            print(
                name,
                *(f"{s['sigma']:g}: {s['tempered']:.2f}" for s in result["estimators"][name]["levels"]),
                flush=True,
            )
    curves(result).savefig(RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
