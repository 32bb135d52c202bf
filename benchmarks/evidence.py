"""How well estimators of evidence name the source of held-out images, by noise level.

    python -m benchmarks.evidence --store stores/cifar --root data/cifar --name cifar_evidence

Cross-entropy (nats) and accuracy of the posterior over all sources of a store; `tempered` divides the log densities by
a temperature, fitted at each level on held-out images of `public`, whose classes play sources. Resumable estimator by
estimator: what stands in NAME.json is not computed again.
"""

import argparse
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence_estimators import STEPS_BETWEEN, Cast, gaussians, kernel, network, path, pseudo_cast
from benchmarks.evidence_ratios import KEPT, KNOTS, PASSES, PUBLIC_SHARE, RIDGES, Ratios
from benchmarks.evidence_scores import Densities, curves, draw_noise, judged, logit_error, loss
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.public import TEMPERATURES
from cdm_lightning.store import Store
from datamodules import ShardDataModule

LEVELS, PAIRS = 4, 1


class Benchmark:
    """Casts of the store's sources and of `public`'s classes, and the estimators over both."""

    def __init__(self, store: Store, root: str, images: int, network_images: int, head_images: int, seed: int) -> None:
        channels, size, _ = store.info.image_shape
        data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
        self.compartments = open_compartments(store, "all", sigma_switch=None, device="cpu")
        self.network_images, self.head_images, self.seed = network_images, head_images, seed
        train = {source: from_uint8(data.images(source, "train")[1]) for source in self.compartments}
        held_out = [from_uint8(data.images(source, "heldout")[1][:images]) for source in self.compartments]
        self.real = Cast.of(self.compartments, train, held_out, seed)
        parts = {part: data.images("public", part) for part in ("train", "heldout")}
        self.public = from_uint8(parts["train"][1])
        of_class = {part: _by_label(from_uint8(x), labels) for part, (_, x, labels) in parts.items()}
        names = sorted(set(of_class["train"]) & set(of_class["heldout"]))
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
            "ratio + gaussians": self.pooled,
            "path": lambda: self.scores(path, few),
            "network": lambda: self.by_network(few),
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

    def by_network(self, images: int) -> dict[str, Any]:
        """Return the scores of the denoising error on the first images, and the noise of its draws."""
        scores = self.scores(lambda cast: network(cast, LEVELS, PAIRS, self.seed), images)
        few = self.real.first(images)
        draws = [network(few, LEVELS, PAIRS, seed) for seed in (self.seed, self.seed + 1)]
        return scores | {"draw_noise": draw_noise(*draws)}

    @cached_property
    def logits(self) -> tuple[float, Densities, Densities]:
        """Return the ridge that is best on the pseudo-sources below the switch, and the heads' logits on both casts."""
        ratios = Ratios(self.compartments, self.public, self.head_images, self.seed)
        pseudo = ratios.of(self.pseudo)
        by_ridge = {ridge: pseudo.logits(pseudo.heads(ridge)) for ridge in RIDGES}
        ridge = min(RIDGES, key=lambda r: sum(loss(d, 1.0) for s, d in by_ridge[r].items() if s <= 1))
        real = ratios.of(self.real)
        return ridge, real.logits(real.heads(ridge)), by_ridge[ridge]

    def ratio(self) -> dict[str, Any]:
        """Return the scores of the heads."""
        ridge, real, pseudo = self.logits
        return {
            "images_per_source": self.real.images,
            "ridge": ridge,
            "levels": judged(real, pseudo),
            "error": [logit_error(sigma, logit) for sigma, logit in real.items()],
        }

    def pooled(self) -> dict[str, Any]:
        """Return the scores of the heads' logits plus the closed forms' log densities over a temperature."""
        _, real, pseudo = self.logits
        form, pseudo_form = gaussians(self.real), gaussians(self.pseudo)
        share = {
            sigma: min(TEMPERATURES.tolist(), key=lambda t: loss(logit + pseudo_form[sigma] / t, 1.0))
            for sigma, logit in pseudo.items()
        }
        both, pseudo_both = (
            {sigma: logit + forms[sigma] / share[sigma] for sigma, logit in logits.items()}
            for logits, forms in ((real, form), (pseudo, pseudo_form))
        )
        temperatures = [{"sigma": sigma, "temperature": t} for sigma, t in share.items()]
        return {
            "images_per_source": self.real.images,
            "gaussians": temperatures,
            "levels": judged(both, pseudo_both),
        }


def _by_label(images: Tensor, labels: list[str]) -> dict[str, Tensor]:
    return {name: images[torch.tensor([label == name for label in labels])] for name in sorted(set(labels))}


def main() -> None:
    """Score every estimator that is not in NAME.json yet, then draw all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=64, help="held-out images of each source")
    parser.add_argument("--network-images", type=int, default=8, help="the same, where the network runs per source")
    parser.add_argument("--head-images", type=int, default=1000, help="training images of each source for its head")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    file = RESULTS / f"{options.name}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"estimators": {}}
    with torch.inference_mode():
        benchmark = Benchmark(
            Store.open(Path(options.store)),
            options.root,
            options.images,
            options.network_images,
            options.head_images,
            options.seed,
        )
        result |= {
            "sources": len(benchmark.compartments),
            "sigma_switch": benchmark.compartments.sigma_switch,
            "network": {"levels": LEVELS, "pairs": PAIRS},
            "path": {"steps_between_levels": STEPS_BETWEEN},
            "ratio": {
                "knots": KNOTS.tolist(),
                "features": KEPT,
                "passes_over_a_source": PASSES,
                "images_of_a_source": options.head_images,
                "images_of_public": PUBLIC_SHARE * options.head_images,
                "ridges": RIDGES,
            },
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
