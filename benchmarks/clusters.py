"""How many Gaussians suit an owner of n images: held-out errors of closed forms, alone and finished by the network.

    python -m benchmarks.clusters --store stores/fashion --root data/fashion --name fashion_clusters

Closed forms of the first n images of every source of a store, with 1 to 20 clusters; nothing is trained.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import EDM, guided_denoise
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.public import Public
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data
from datamodules import ShardDataModule

SIGMAS = (5.0, 2.0, 1.0, 0.5, 0.3)
SIZES = (100, 500, 2000, 5000)
CLUSTERS = (1, 2, 3, 5, 10, 20)
SHOWN = 0.5  # the noise level of the table
FEWEST = 50  # images of a cluster


def errors(
    network: Backbone, public: Public, images: Tensor, clusters: int, held_out: Tensor
) -> dict[str, list[float]]:
    """Return the held-out errors by level of the closed form of these images, alone and finished."""
    form = Gaussians.fit(
        images,
        seed=0,
        public=public.closed_form,
        strength=public.strength,
        rank=public.rank,
        clusters=clusters,
        images_per_cluster=FEWEST,
    )

    def finished(x: Tensor, sigma: Tensor) -> Tensor:
        error = public.error.at(sigma, torch.full_like(sigma, len(images)))
        return guided_denoise(EDM(), network, x, sigma, form.denoise(x, sigma), error)

    return {
        "closed_form": heldout_error(form.denoise, held_out, SIGMAS),
        "guided": heldout_error(finished, held_out, SIGMAS),
    }


def measured(store: Store, data: ShardDataModule, held_out: int) -> list[dict[str, Any]]:
    """Return the errors, averaged over the sources, for every number of images and of clusters."""
    network, public = unpack_backbone(*store.read_backbone())
    images = {
        source: [from_uint8(data.images(source, part)[1]) for part in ("train", "heldout")]
        for source in store.sources()
    }
    rows = []
    for n in SIZES:
        for clusters in (k for k in CLUSTERS if n // k >= FEWEST):
            by_source = [errors(network, public, x[:n], clusters, y[:held_out]) for x, y in images.values()]
            means = {
                kind: [sum(one[kind][i] for one in by_source) / len(by_source) for i in range(len(SIGMAS))]
                for kind in by_source[0]
            }
            rows.append({"n": n, "clusters": clusters, "mse": means})
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the errors at SHOWN, closed form and finished, with a row for each number of images."""
    level = SIGMAS.index(SHOWN)
    cells = {
        (row["n"], row["clusters"]): " / ".join(f"{row['mse'][kind][level]:.4f}" for kind in ("closed_form", "guided"))
        for row in rows
    }
    head = ["n", *(str(k) for k in CLUSTERS)]
    return markdown([head, *([str(n), *(cells.get((n, k), "") for k in CLUSTERS)] for n in SIZES)])


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=100, help="held-out images of each source")
    options = parser.parse_args()
    store = Store.open(Path(options.store))
    data = shard_data(store, Path(options.root), None)
    with torch.inference_mode():
        rows = measured(store, data, options.images)
    result = {"rows": rows, "sigma": SIGMAS, "heldout_per_source": options.images, "sources": store.sources()}
    result |= {"backbone": store.read_backbone()[1], "versions": versions()}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
