"""What differential privacy costs in samples: KID and Frechet distance by epsilon, closed form only and with a prompt.

    python -m benchmarks.private_samples --store out/quality/stores/ours --root out/quality/shards/classes

A store for each epsilon, and one without privacy, with the closed forms alone, and with prompts trained by DP-SGD, or
plainly for as many steps; all on the backbone of STORE. Each is sampled composed, and every source alone. What was
fitted and sampled is not made again.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.backbones import copy_backbone, options_of
from benchmarks.quality import QUIET, Step, one
from benchmarks.quality_stores import CONFIG
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.comparison import Comparison
from cdm_lightning.contenders import Contender
from cdm_lightning.evaluation_images import EvaluationImages
from cdm_lightning.extractors import open_extractor
from cdm_lightning.generation import Settings
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown

EPSILONS = (1.0, 5.0, 10.0, None)  # None: without privacy
KINDS = ("none", "tokens")
COMPOSED = "composed"
EXTRACTOR: Literal["effnet-lite0"] = "effnet-lite0"
PROMPT = {"--trainer.max_steps": "60", "--data.batch_size": "128"}
SCORES = {"Frechet": ("frechet", ".0f"), "KID": ("kid", ".3f")}  # name, and how it is written
PRIVATE_PROMPT = {"--privacy.draws": "2"}


def label(epsilon: float | None, kind: str) -> str:
    """Return the name of a store and of its row."""
    return f"{kind}-plain" if epsilon is None else f"{kind}-{epsilon:g}"


def fitted(options: argparse.Namespace, epsilon: float | None, kind: str) -> Store:
    """Return the store of an epsilon and a kind of compartment; what is up to date is left as it is."""
    name = label(epsilon, kind)
    place, chosen = Path(options.work) / "stores" / name, {"--model.compartment": kind}
    copy_backbone(Path(options.store), place)
    if kind != "none":
        chosen |= PROMPT
    if epsilon is not None:
        chosen |= {"--privacy.epsilon": str(epsilon), "--privacy.delta": str(options.delta)}
        chosen |= PRIVATE_PROMPT if kind != "none" else {}
    words = [word for pair in chosen.items() for word in pair]
    where = ["--store", str(place), "--data.root", options.root, *options_of(place)]
    one(name, Step(["fit", "--config", CONFIG, *where, *words, *QUIET]), Path(options.work) / "logs")
    return Store.open(place)


def scored(stores: Mapping[str, Store], sources: list[str], folder: Path, n: int, root: Path) -> dict[str, Any]:
    """Return the row of every store, sampled from these sources and compared with their held-out images."""
    first = next(iter(stores.values()))
    images, extractor = EvaluationImages(first, sources, root, None), open_extractor(EXTRACTOR, None)
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    make = partial(images.yardstick, extractor, folder / "features")
    comparison = Comparison(folder / "rows", Settings(n=n), extractor, images.identity(), make)
    found = {}
    for name, store in stores.items():
        contender = Contender(name, store.path, tuple(sources), "routed")
        samples = comparison.samples(contender, contender.open("cpu"))
        features = comparison.features(name, samples.images)
        found[name] = comparison.yardstick.measure(samples.images, features, 0)
        print(folder.name, name, found[name]["scores"], flush=True)
    return {name: {part: row[part] for part in ("scores", "intervals")} for name, row in found.items()}


def summary(result: Mapping[str, Any]) -> str:
    """Return a row for each store: composed, and the mean over the sources alone."""
    table = [["closed form", "prompt", *(f"{where}: {score}" for where in ("composed", "alone") for score in SCORES)]]
    for kind in result["kinds"]:
        for epsilon in EPSILONS:
            rows = {place: rows[label(epsilon, kind)] for place, rows in result["rows"].items()}
            together = [interval(rows[COMPOSED], result["n"], score) for score in SCORES]
            alone = [
                mean_of([row for place, row in rows.items() if place != COMPOSED], result["n_alone"], score)
                for score in SCORES
            ]
            budget = "plain" if epsilon is None else f"epsilon {epsilon:g}"
            table.append([budget, kind, *together, *alone])
    return markdown(table)


def interval(row: Mapping[str, Any], n: int, score: str) -> str:
    """Return a score of a row with its interval."""
    name, form = SCORES[score]
    found = row["intervals"][f"{name}@{n}_{EXTRACTOR}"]
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def mean_of(rows: list[Mapping[str, Any]], n: int, score: str) -> str:
    """Return the mean of a score over rows."""
    name, form = SCORES[score]
    return f"{sum(row['scores'][f'{name}@{n}_{EXTRACTOR}'] for row in rows) / len(rows):{form}}"


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--name", default="private_samples")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of compartments")
    parser.add_argument("--work", default="out/private", help="folder of stores, rows and logs")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--n", type=int, default=500, help="samples of every composed model")
    parser.add_argument("--n-alone", type=int, default=200, help="samples of every source")
    options = parser.parse_args()
    (Path(options.work) / "logs").mkdir(parents=True, exist_ok=True)
    stores = {label(epsilon, kind): fitted(options, epsilon, kind) for kind in options.kinds for epsilon in EPSILONS}
    sources, tables, root = next(iter(stores.values())).sources(), Path(options.work) / "tables", Path(options.root)
    rows = {COMPOSED: scored(stores, sources, tables / COMPOSED, options.n, root)}
    for source in sources:
        rows[source] = scored(stores, [source], tables / source, options.n_alone, root)
    cards = {name: {source: store.read_card(source).settings for source in sources} for name, store in stores.items()}
    result = {
        "rows": rows,
        "n": options.n,
        "n_alone": options.n_alone,
        "delta": options.delta,
        "extractor": EXTRACTOR,
        "kinds": options.kinds,
    }
    result |= {"sampler": "heun", "steps": Settings().steps, "seed": 0, "settings": cards, "versions": versions()}
    result |= {"prompt": PROMPT | PRIVATE_PROMPT, "threads": torch.get_num_threads()}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(result))


if __name__ == "__main__":
    main()
