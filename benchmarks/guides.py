"""Which guide lets a backbone finish the drafts of sources that it never saw: cuts of `public`, folds, inputs, parts.

    python -m benchmarks.guides --store stores/fashion --root data/fashion --name fashion_guides --steps 500

Every way trains a network of the store's size on `public` from the same start, for fewer steps than the store's own,
and is measured on held-out images of the sources: with all images of a source behind its closed form, and with few.
Resumable way by way: what stands in NAME.json is not trained again.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.guide_parts import DEEP, HEAD, TRANSFORMER
from benchmarks.guide_training import Guide, PublicImages, Way, train, unguided
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.denoiser import EDM, denoise
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import build_backbone
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data
from datamodules import ShardDataModule

SIGMAS = (2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
FEW = (20, 100, 500)
BASE = "as fitted"
WAYS = {
    BASE: Way(),
    "another seed": Way(seed=1),
    "drafts have seen the images": Way(in_fold=True),
    "public in one piece": Way(cut="one"),
    "10 clusters": Way(cut="10 clusters"),
    "5 clusters of each class": Way(cut="5 clusters of each class"),
    "drafts of all images only": Way(sizes=()),
    "rank 16": Way(rank=16),
    "rank 128": Way(rank=128),
    "1 cluster": Way(clusters=1),
    "20 clusters a closed form": Way(clusters=20),
    "no residual": Way(residual=False),
    "how far its components are apart": Way(known="between"),
    "how unsure it is": Way(known="deviation"),
    "a fifth without a guide": Way(blind=0.2),
    "never a guide": Way(blind=1.0),
    "transformer alone": Way(parts=TRANSFORMER),
    "convolutions alone": Way(parts=HEAD),
    "more convolutions": Way(parts=DEEP),
}


def errors_of(guide: Guide, network: Any, train_images: Tensor, held_out: Tensor) -> dict[str, list[float]]:
    """Return the error at every noise level on one source: of its closed forms, finished, and without a guide."""
    found = {}
    sizes = {str(n): n for n in FEW if n < len(train_images)} | {"all": len(train_images)}
    for name, n in sizes.items():
        form = guide.of_source(train_images[:n])
        found[f"closed form, {name}"] = heldout_error(form.denoise, held_out, SIGMAS)
        if guide.way.blind < 1:
            found[f"guided, {name}"] = heldout_error(partial(guide.finish, network, form, n), held_out, SIGMAS)
    if guide.way.blind:
        found["unguided"] = heldout_error(partial(denoise, EDM(), partial(unguided, network)), held_out, SIGMAS)
    return found


def measured(way: Way, store: Store, data: ShardDataModule, sources: list[str], options: Any) -> dict[str, Any]:
    """Train a network in one way, and return its errors averaged over the sources, and the seconds."""
    metadata = store.read_backbone()[1]
    keys, images, labels = data.images("public", "train")
    start = time.perf_counter()
    guide = Guide.fit(way, PublicImages(from_uint8(images), tuple(keys), tuple(labels)))
    fitted = time.perf_counter()
    network = build_backbone(str(metadata["backbone"]["class_path"]), metadata["backbone"]["init_args"])
    train(network, guide, steps=options.steps, rate=metadata["learning_rate"], batch=metadata["batch_size"])
    trained = time.perf_counter()
    by_source = []
    for source in sources:
        own, held_out = data.images(source, "train")[1], data.images(source, "heldout")[1][: options.images]
        by_source.append(errors_of(guide, network, from_uint8(own), from_uint8(held_out)))
    means = {
        name: [sum(rows[name][i] for rows in by_source) / len(by_source) for i in range(len(SIGMAS))]
        for name in by_source[0]
    }
    seconds = {"closed_forms": round(fitted - start, 1), "training": round(trained - fitted, 1)}
    return {"way": asdict(way), "pseudo_sources": len(guide.drafts.pseudo.groups()), "seconds": seconds, "mse": means}


def summary(ways: Mapping[str, Any]) -> str:
    """Return the errors of every way, with all images of a source and with few, divided by those of the first."""
    base = ways[BASE]["mse"]
    columns = [(f"{sigma:g}", "guided, all", i) for i, sigma in enumerate(SIGMAS)]
    columns += [(f"0.5, n = {n}", f"guided, {n}", SIGMAS.index(0.5)) for n in FEW]
    rows = [[BASE, *(f"{base[row][i]:.5f}" for _, row, i in columns)]]
    for name, result in ways.items():
        if name != BASE and "guided, all" in result["mse"]:
            rows.append([name, *(f"{result['mse'][row][i] / base[row][i]:.3f}" for _, row, i in columns)])
    return markdown([["way", *(title for title, _, _ in columns)], *rows])


def main() -> None:
    """Measure every way that is not in NAME.json yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=500, help="training steps of every network")
    parser.add_argument("--images", type=int, default=100, help="held-out images of each source")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="which; by default all")
    options = parser.parse_args()
    store, file = Store.open(Path(options.store)), RESULTS / f"{options.name}.json"
    data = shard_data(store, Path(options.root), None)
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"ways": {}}
    result |= {"steps": options.steps, "heldout_per_source": options.images, "sigma": SIGMAS}
    result |= {"sources": store.sources(), "backbone": store.read_backbone()[1], "versions": versions()}
    for name in options.ways:
        if name not in result["ways"]:
            result["ways"][name] = measured(WAYS[name], store, data, store.sources(), options)
            file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        print(name, result["ways"][name]["seconds"], flush=True)
    print(summary({name: result["ways"][name] for name in WAYS if name in result["ways"]}))


if __name__ == "__main__":
    main()
