"""What forgetting one image costs, and what it does to the samples: eight random parts against one model of everything.

    python -m benchmarks.forgetting --backbone STORE [--work out/forgetting] [--input FOLDER]

The parts, the monolith and their settings are those of `benchmarks.quality`, but without class labels; STORE has its
guided backbone (`python -m benchmarks.quality --only "backbone guided"` makes out/quality/stores/backbone-guided).
Everything runs in one go, on one thread; the forgetting itself is the command `forget`, in a process of its own.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backbones import copy_backbone
from benchmarks.convergence import NEAR, WARM_UP, Point, compared, curve
from benchmarks.forgetting_tables import summary
from benchmarks.kid_differences import kids
from benchmarks.quality import Plan, Step, one
from benchmarks.quality_stores import BATCH, CLUSTERS, FULL_RATE, SOURCES, Fitted
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.collateral import collateral
from cdm_lightning.generation import Settings
from cdm_lightning.images import from_uint8
from cdm_lightning.store import COMPARTMENT_FILES, Store
from datamodules import ShardDataModule
from datamodules.names import HELDOUT, TRAIN, Part

SOURCE = "part0"  # of the parts, and the name of the monolith's only source
PARTS = Fitted("guided", "parts")
MONOLITH = Fitted("guided", "union", clusters=SOURCES["parts"] * CLUSTERS)
TRAINED: dict[str, Any] = {"kind": "full", "options": FULL_RATE}
BUDGETS = {"part": (PARTS, 300, 25), "monolith": (MONOLITH, 2400, 100)}  # steps, and steps between points
HELD_OUT = 400  # images of a curve
STAGES = ("closed forms", "curves")
AIM = 1.05 / SOURCES["parts"]


@dataclass(frozen=True)
class Place:
    """Where everything is: the plan of the quality benchmark, and the sample that is forgotten, with its file."""

    plan: Plan
    key: str
    file: Path

    def fitted(self, name: str, fitted: Fitted, *options: str) -> Store:
        """Fit a store, and return it."""
        step = self.plan.store(name, fitted)
        one(name, replace(step, arguments=[*step.arguments, *options]), self.plan.work / "logs")
        return Store.open(self.plan.place(name))

    def forget(self, store: Store, split: str) -> dict[str, float]:
        """Forget the sample in a store; return seconds of the command, by clock and of CPU, and of the fit in it."""
        receipt = self.plan.work / "receipt.json"
        where = ["--store", str(store.path), "--root", self.plan.root(split), "--json", str(receipt)]
        start, used = time.perf_counter(), cpu_of_children()
        one(f"forget in {store.path.name}", Step(["forget", *where, "--sample", self.key]), self.plan.work / "logs")
        clock, cpu = time.perf_counter() - start, cpu_of_children() - used
        fit = json.loads((store.runs / "sources" / SOURCE / "seconds.json").read_text())["seconds"]
        return {"clock": round(clock, 2), "cpu": round(cpu, 2), "fit_clock": round(sum(fit.values()), 2)}


def cpu_of_children() -> float:
    """Return the seconds of CPU that all processes have used which this one has started, and which have ended."""
    used = os.times()
    return used.children_user + used.children_system


def images(root: str, source: str, part: Part) -> tuple[list[str], Tensor]:
    """Return keys and images, uint8, of a source of Fashion-MNIST."""
    keys, found, _ = ShardDataModule(root, image_size=28, channels=1).images(source, part)
    return keys, found


def closed_forms(place: Place, n: int) -> dict[str, Any]:
    """Forget the image in a store of eight closed forms, and compare the samples of before, after and never."""
    store = place.fitted("parts", PARTS)
    before = Store.open(Path(shutil.copytree(store.path, place.plan.place("parts-before"))))
    seconds = place.forget(store, "parts")
    never = place.fitted("parts-never", PARTS, "--data.exclude", str(place.file))
    monolith = place.forget(place.fitted("monolith", MONOLITH), "union")
    held_out = torch.cat([images(place.plan.root("parts"), source, HELDOUT)[1] for source in store.sources()])
    changed = collateral(before, store, Settings(n=16))
    return {
        "seconds": seconds,
        "monolith_seconds": monolith,
        "same_bytes_as_never": {source: same_bytes(store, never, source) for source in store.sources()},
        "collateral": changed.as_json() | {"n": 16},
        "kid": kids({"before": before, "after": store, "never": never}, held_out, n),
    }


def same_bytes(store: Store, other: Store, source: str) -> bool:
    """Return whether the compartments of a source are the same files."""
    return all(
        (store.folder(source) / name).read_bytes() == (other.folder(source) / name).read_bytes()
        for name in COMPARTMENT_FILES
    )


def curves(place: Place) -> dict[str, list[Point]]:
    """Return the curve of a trained part and of the trained monolith, on the same held-out images."""
    held_out = from_uint8(images(place.plan.root("union"), SOURCE, HELDOUT)[1][:HELD_OUT])
    found = {}
    for name, (fitted, steps, every) in BUDGETS.items():
        step = place.plan.store(f"curve-{name}", replace(fitted, **TRAINED))
        assert step.prepare is not None
        step.prepare()
        quiet = ("--trainer.max_steps", str(steps), "--trainer.enable_checkpointing", "false")
        found[name] = curve([*step.arguments[1:], *quiet], SOURCE, held_out, every)
    return found


def of_curves(points: Mapping[str, list[Point]]) -> dict[str, Any]:
    """Return curves, and where they are near their best, as JSON."""
    return {
        "curves": {name: [asdict(point) for point in some] for name, some in points.items()},
        "convergence": compared(points["part"], points["monolith"], SOURCES["parts"], BATCH),
    }


def main() -> None:
    """Write benchmarks/results/forgetting.json, and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", required=True, help="a store with the backbone `guided` of benchmarks.quality")
    parser.add_argument(
        "--work", default="out/forgetting", help="folder of shards, stores and logs; stores are made anew"
    )
    parser.add_argument("--input", default=None, help="folder of torchvision's FashionMNIST; by default a download")
    parser.add_argument("--n", type=int, default=1000, help="sampled images of each store")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what was found of others stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Path(options.work)
    plan = Plan(work, options.input, None)
    (work / "logs").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "stores", ignore_errors=True)
    file = RESULTS / "forgetting.json"
    for split in ("parts", "union"):
        if not Path(plan.root(split)).is_dir():
            one(f"shards of {split}", plan.steps()[f"shards of {split}"], work / "logs")
    copy_backbone(Path(options.backbone), plan.place("backbone-guided"))
    key = images(plan.root("parts"), SOURCE, TRAIN)[0][0]
    (work / "excluded.txt").write_text(key + "\n")
    place = Place(plan, key, work / "excluded.txt")
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result |= {
        "sample": key,
        "aim": AIM,
        "near": NEAR,
        "heldout_images_of_curves": HELD_OUT,
        "error": "geometric mean over sigma of the mean square error on held-out images, running average of weights",
        "training": f"full copy, batch {BATCH}, rate 1e-3, constant after {WARM_UP} steps",
        "seconds_of_curves": "of CPU, one thread, closed forms and drafts included, measuring not",
        "split": "Fashion-MNIST, public 0, 2, 4, 6, 8; eight random parts of the other classes; 10 % held out; seed 0",
        "backbone": Store.open(plan.place("backbone-guided")).read_backbone()[1],
        "versions": versions(),
    }
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "closed forms": lambda: {"closed_forms": closed_forms(place, options.n)},
        "curves": lambda: of_curves(curves(place)),
    }
    for name in options.stages:
        start = time.perf_counter()
        result |= found[name]()
        result["clock"] = {**result.get("clock", {}), name: round(time.perf_counter() - start)}
        file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(result))


if __name__ == "__main__":
    main()
