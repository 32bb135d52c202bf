"""The guided backbone, which never trained on the sources, against plain networks of the same size that did.

    python -m benchmarks.plain_opponent --store stores/cifar --root data/cifar --name cifar_plain --tune none

Trains a plain network on `public` for as many steps as the store's backbone, then tunes a full copy of it to every
source for as many steps again, and compares held-out denoising errors. `--tune none` leaves the tuning out, `--tune
a,b` tunes to these sources and compares on them. The networks lie in `--work`, so a run that was cut goes on.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.plain import cached, plain_network, train_plain
from benchmarks.store_report import HELDOUT, RESULTS, heldout_images
from benchmarks.versions import versions
from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import EDM, denoise
from cdm_lightning.evaluation import SIGMAS, heldout_error, heldout_errors
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from datamodules import ShardDataModule


class Opponents:
    """Plain networks by name: `public`, and one per source that starts from it."""

    def __init__(self, store: Store, root: str, work: Path) -> None:
        self.metadata = store.read_backbone()[1]
        channels, size, _ = store.info.image_shape
        self.data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
        self.work = work
        self.seconds: dict[str, float] = {}

    def network(self, name: str) -> Backbone:
        """Return the plain network of `public` or of a source, trained now or before."""
        network = plain_network(self.metadata)
        if name != "public":
            network.load_state_dict(self.network("public").state_dict())
        cached(network, self.work / f"{name}.safetensors", partial(self._train, network, name))
        return network

    def _train(self, network: Backbone, name: str) -> None:
        start = time.perf_counter()
        settings = {key: self.metadata[key] for key in ("steps", "batch_size", "learning_rate")}
        images = from_uint8(self.data.images(name, "train")[1])
        rate = settings["learning_rate"] * (1.0 if name == "public" else 0.5)
        train_plain(network, images, steps=settings["steps"], rate=rate, batch=settings["batch_size"], name=name)
        self.seconds[name] = round(time.perf_counter() - start, 1)


def compare(store: Store, root: str, work: Path, tune: str) -> dict[str, Any]:
    """Return the held-out errors of closed form, guided, plain on public, and plain tuned to the source."""
    sources = store.choose("all" if tune == "none" else tune)
    compartments = open_compartments(store, sources, sigma_switch=float("inf"), device="cpu")
    images, opponents = heldout_images(store, root, sources), Opponents(store, root, work)
    errors = heldout_errors(compartments, images)
    for source, x_0 in images.items():
        for kind, name in (("plain_public", "public"), ("plain_tuned", source)):
            if kind == "plain_public" or tune != "none":
                errors[source][kind] = heldout_error(partial(denoise, EDM(), opponents.network(name)), x_0)
    return {
        "heldout_mse": {"n_per_source": HELDOUT, "sigma": SIGMAS, "by_source": errors},
        "steps": opponents.metadata["steps"],
        "learning_rate": {"public": opponents.metadata["learning_rate"], "tuned": "half of it"},
        "seconds_of_this_run": opponents.seconds,
        "versions": versions(),
    }


def summary(result: dict[str, Any]) -> str:
    """Return the errors averaged over sources as a Markdown table."""
    errors = result["heldout_mse"]["by_source"]
    kinds = list(next(iter(errors.values())))
    lines = ["| sigma | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for i, sigma in enumerate(result["heldout_mse"]["sigma"]):
        means = [sum(rows[kind][i] for rows in errors.values()) / len(errors) for kind in kinds]
        lines.append(f"| {sigma:g} | " + " | ".join(f"{mean:.5f}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--work", default="out/opponents")
    parser.add_argument("--tune", default="all", help="all, none, or sources with commas between them")
    options = parser.parse_args()
    store, work = Store.open(Path(options.store)), Path(options.work) / options.name
    result = compare(store, options.root, work, options.tune)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(result))


if __name__ == "__main__":
    main()
