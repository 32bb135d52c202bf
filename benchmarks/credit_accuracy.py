"""Are held-out images credited to their owner, and as surely as the credits say? By method and by source.

    python -m benchmarks.credit_accuracy --store stores/cifar --root data/cifar --label cifar

An image is credited rightly if its own source has the largest value. The calibration error is of shares, for `shapley`
of what is positive. credit_accuracy.json holds an entry per label.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.datamodeling import RESAMPLED
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.attribution import BINS, bins_of, calibration_error, largest_weights
from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_methods import CreditSettings, credit
from cdm_lightning.images import from_uint8
from cdm_lightning.intervals import score_interval, share_interval
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data

FEW = 4  # noise draws of the methods that cost more
METHODS = {
    "weights": CreditSettings("weights", draws=FEW),
    "gaussians": CreditSettings("gaussians"),
    "shapley": CreditSettings("shapley"),
    "network": CreditSettings("network", draws=FEW),
}
NAME = "credit_accuracy.json"


def shares(value: Tensor, positive: Tensor) -> Tensor:
    """Return the positive shares [source, image]; equal ones where no value [source, image] is above zero."""
    return torch.where(positive.isnan(), 1 / len(value), positive)


def calibration_interval(weights: Sequence[Tensor], seed: int) -> list[float]:
    """Return the calibration error of weights, one [source, image] per true source, and its interval, from 0 up.

    1.96 standard errors to both sides, those of the bootstrap over images. Of few images the error itself is too large.
    """
    confidence, right = largest_weights(weights)
    n, gap = len(confidence), right - confidence
    parts = torch.nn.functional.one_hot(bins_of(confidence), BINS) * gap[:, None]
    index = torch.randint(n, (RESAMPLED, n), generator=generator(seed, "bootstrap"))
    counts = torch.zeros(RESAMPLED, n, dtype=parts.dtype).scatter_add(1, index, torch.ones_like(index, dtype=gap.dtype))
    found = score_interval(calibration_error(weights), (counts @ parts).abs().sum(1) / n)
    return [found.value, max(found.low, 0.0), found.high]


def classwise_errors(weights: Tensor, true: Tensor) -> list[float]:
    """Return how far each source's credits [source, image] are off, by source (classwise: Kull et al. 2019).

    Over bins of the source's credit, whoever the image is of: its mean less the share of images that are the source's.
    """
    bins, own = bins_of(weights), torch.arange(len(weights))[:, None] == true
    sums = torch.zeros(len(weights), BINS, dtype=torch.double).scatter_add(1, bins, weights.double() - own.double())
    found: list[float] = (sums.abs().sum(1) / weights.shape[1]).tolist()
    return found


def scores(value: Tensor, positive: Tensor, names: Sequence[str], counts: Sequence[int], seed: int) -> dict[str, Any]:
    """Return accuracy and calibration error by source and of all images; but for that by source with intervals.

    Args:
        value: [source, image], the images of every source one after another.
        positive: positive shares [source, image].
        names: of the sources.
        counts: images of each source.
        seed: of the bootstrap.
    """
    true = torch.arange(len(names)).repeat_interleave(torch.tensor(counts))
    right = value.argmax(0) == true
    by_source = {name: _share(right[true == place]) for place, name in enumerate(names)}
    credits = shares(value, positive)
    return {
        "accuracy": _share(right),
        "by_source": by_source,
        "calibration_error": calibration_interval(credits.split(list(counts), dim=1), seed),
        "calibration_by_source": dict(zip(names, classwise_errors(credits, true), strict=True)),
        "none_positive": int(positive[0].isnan().sum()),
    }


def _share(right: Tensor) -> list[float]:
    found = share_interval(int(right.sum()), len(right))
    return [found.value, found.low, found.high]


def measure(opened: Compartments, held_out: Mapping[str, Tensor], method: str, seed: int) -> dict[str, Any]:
    """Return the scores of a method on images in [-1, 1] by source, and what an image cost."""
    before, start, x_0 = opened.evaluations, time.process_time(), torch.cat(list(held_out.values()))
    with torch.inference_mode():
        found = credit(opened, x_0, METHODS[method])
    cost = {
        "evaluations": (opened.evaluations - before) / len(x_0),
        "seconds": (time.process_time() - start) / len(x_0),
        "draws": METHODS[method].draws,
        "images": len(x_0),
    }
    return scores(found.value, found.positive, list(held_out), [len(x) for x in held_out.values()], seed) | cost


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the entries of methods as a Markdown table; of each source accuracy and classwise calibration error."""
    sources = list(next(iter(rows.values()))["by_source"])
    lines = [["method", "images", "accuracy", "calibration error", *sources, "evaluations", "s/image"]]
    for name, row in rows.items():
        right, low, high = (100 * x for x in row["accuracy"])
        error = "{:.3f} [{:.3f}, {:.3f}]".format(*row["calibration_error"])
        off = row["calibration_by_source"]
        by_source = [f"{100 * one[0]:.0f} %, {off[source]:.3f}" for source, one in row["by_source"].items()]
        cost = [f"{row['evaluations']:.0f}", f"{row['seconds']:.2f}"]
        lines.append(
            [f"`{name}`", str(row["images"]), f"{right:.1f} % [{low:.1f}, {high:.1f}]", error, *by_source, *cost]
        )
    return markdown(lines)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "label"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=60, help="held-out images of each source")
    parser.add_argument("--weights-images", type=int, default=60, help="those that `weights` credits, at most --images")
    parser.add_argument("--network-images", type=int, default=5, help="those that `network` credits; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(words)


def main() -> None:
    """Measure one store and write the entry of its label."""
    options = arguments()
    store = Store.open(Path(options.store))
    data = shard_data(store, Path(options.root), None)
    opened = open_compartments(store, "all", sigma_switch=None, device="cpu")
    held_out = {name: from_uint8(data.images(name, "heldout")[1][: options.images]) for name in opened}
    most = {"network": options.network_images, "weights": options.weights_images}
    rows: dict[str, Any] = {}
    for method in METHODS:
        some = {name: images[: most.get(method, options.images)] for name, images in held_out.items()}
        if len(next(iter(some.values()))):
            rows[method] = measure(opened, some, method, options.seed)
            print(table({method: rows[method]}), flush=True)
    file = RESULTS / NAME
    result = json.loads(file.read_text()) if file.exists() else {}
    result[options.label] = {
        "methods": rows,
        "settings": {name: asdict(METHODS[name]) for name in rows},
        "training_images": {name: compartment.n for name, compartment in opened.compartments.items()},
        "floor": opened.public.calibration.floor,
        "backbone_sha256": store.info.backbone_sha256,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
