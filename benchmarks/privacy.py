"""What differential privacy costs: held-out errors of private closed forms, alone and finished by the network.

    python -m benchmarks.privacy --store stores/fashion --root data/fashion --name privacy

Closed forms of the first n images of every source below the root, for several epsilon; nothing is trained. Rows to
compare with: the plain closed form of the same images, and that of `public`, which knows nothing of the source. With
`--private` the drafts are also finished by another backbone, one that was trained on private drafts.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import EDM, guided_denoise
from cdm_lightning.drafts import ordinary_noise
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.gaussian_mechanism import mu_of
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.private_gaussians import Frame, fit_private
from cdm_lightning.public import Public
from cdm_lightning.seeding import stable_hash
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data
from datamodules import ShardDataModule

SIGMAS = (1.0, 0.5, 0.3)
EPSILONS = (1.0, 5.0, 8.0, 10.0)
WITHOUT_NOISE = 1e9  # a mu
Images = Mapping[str, tuple[Tensor, Tensor]]  # training and held-out images by source
Finisher = tuple[Backbone, Public]


def private(images: Tensor, frame: Frame, rank: int, mu: float, seed: int) -> Gaussians:
    """Return the private closed form of some images."""
    noise = partial(ordinary_noise, torch.Generator().manual_seed(seed))
    return fit_private(images, frame, mu=mu, noise=noise, rank=rank, clusters=10)[0]


def errors(form: Gaussians, n: int, held_out: Tensor, finishers: Mapping[str, Finisher]) -> dict[str, list[float]]:
    """Return the held-out errors at SIGMAS of a closed form, alone and finished by each network."""
    found = {"closed_form": heldout_error(form.denoise, held_out, SIGMAS)}
    for name, (network, public) in finishers.items():

        def finished(x: Tensor, sigma: Tensor, network: Backbone = network, public: Public = public) -> Tensor:
            error = public.error.at(sigma, torch.full_like(sigma, n))
            return guided_denoise(EDM(), network, x, sigma, form.denoise(x, sigma), error)

        found[name] = heldout_error(finished, held_out, SIGMAS)
    return found


def averaged(
    fit: Callable[[str, Tensor], Gaussians], images: Images, n: int, finishers: Mapping[str, Finisher]
) -> dict[str, Any]:
    """Return the errors, averaged over the sources, and the seconds of a fit."""
    found, seconds = [], 0.0
    for source, (train, held_out) in images.items():
        start = time.process_time()
        form = fit(source, train[:n])
        seconds += time.process_time() - start
        found.append(errors(form, n, held_out, finishers))
    mse = {name: [sum(one[name][i] for one in found) / len(found) for i in range(len(SIGMAS))] for name in found[0]}
    return {"n": n, "mse": mse, "seconds": round(seconds / len(images), 2)}


def measured(
    finishers: Mapping[str, Finisher], images: Images, sizes: list[int], delta: float, draws: int
) -> list[dict[str, Any]]:
    """Return a row per number of images and epsilon (None: no noise), and the plain and the public one."""
    public = finishers["guided"][1]
    frame, rank = Frame.of(public.closed_form), public.rank
    rows = []
    for n in sizes:
        for epsilon in (*EPSILONS, None):
            mu = WITHOUT_NOISE if epsilon is None else mu_of(epsilon, delta)
            for draw in range(1 if epsilon is None else draws):

                def fit(source: str, x: Tensor, mu: float = mu, draw: int = draw) -> Gaussians:
                    return private(x, frame, rank, mu, stable_hash(draw, source))

                rows.append({"kind": "private", "epsilon": epsilon, "draw": draw} | averaged(fit, images, n, finishers))
                print(rows[-1], flush=True)

        def plain(source: str, x: Tensor) -> Gaussians:
            return Gaussians.fit(x, seed=0, public=public.closed_form, strength=public.strength, rank=rank)

        rows.append({"kind": "plain"} | averaged(plain, images, n, finishers))
        rows.append({"kind": "public"} | averaged(lambda source, x: public.closed_form, images, n, finishers))
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the errors, averaged over the draws, with a row for each number of images and kind."""
    cells: dict[tuple[int, str], list[dict[str, list[float]]]] = {}
    for row in rows:
        kind = row["kind"]
        if kind == "private":
            kind = "private, no noise" if row["epsilon"] is None else f"private, epsilon {row['epsilon']:g}"
        cells.setdefault((row["n"], kind), []).append(row["mse"])
    names = list(rows[0]["mse"])
    table = [["n", "closed form", *(f"{name} {sigma:g}" for name in names for sigma in SIGMAS)]]
    for (n, kind), found in cells.items():
        means = [sum(one[name][i] for one in found) / len(found) for name in names for i in range(len(SIGMAS))]
        table.append([str(n), kind, *(f"{value:.4f}" for value in means)])
    return markdown(table)


def images_of(data: ShardDataModule, held_out: int) -> Images:
    """Return training images and the first held-out images of every source."""
    parts = {
        source: [data.images(source, part)[1] for part in ("train", "heldout")] for source in data.chosen_sources()
    }
    return {source: (from_uint8(train), from_uint8(other[:held_out])) for source, (train, other) in parts.items()}


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--private", help="another store, whose backbone was trained on private drafts")
    parser.add_argument("--images", type=int, default=100, help="held-out images of each source")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000], help="training images of each source")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--draws", type=int, default=1, help="of the noise")
    options = parser.parse_args()
    stores = {"guided": options.store} | ({"guided_private": options.private} if options.private else {})
    opened = {name: Store.open(Path(path)) for name, path in stores.items()}
    data = shard_data(opened["guided"], Path(options.root), None)
    images = images_of(data, options.images)
    with torch.inference_mode():
        finishers = {name: unpack_backbone(*store.read_backbone()) for name, store in opened.items()}
        rows = measured(finishers, images, options.sizes, options.delta, options.draws)
    result = {"rows": rows, "sigma": SIGMAS, "delta": options.delta, "heldout_per_source": options.images}
    result |= {"sources": list(images), "versions": versions()}
    result["backbones"] = {name: store.read_backbone()[1] for name, store in opened.items()}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
