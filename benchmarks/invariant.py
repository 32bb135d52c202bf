"""The invariant from outside: commands are run, and the bytes of the folders that they leave are compared.

For every kind of compartment, with the running average as it is by default:

- a, b, c fitted, then b forgotten = a, c fitted = a fitted, and c later;
- c fitted, then one image of it forgotten (with and without `--purge`) = fitted with a file that excludes it = fitted
  from shards that were written without it, in a store that has seen neither.

Images are scikit-learn's handwritten digits, written as PNG and listed in a CSV file, so that shards can be written
without one of them. Nothing of the package is imported but the versions.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.quality_stores import UVIT
from benchmarks.versions import versions

KINDS = ("none", "tokens", "lora", "head", "full")
A, B, C = "digit0", "digit1", "digit2"
CONFIG = "digits_shards.yaml"
TRANSFORMER = (*UVIT, "--model.backbone.init_args.patch_size", 2)  # can have every kind
RESULTS = Path(__file__).parent / "results"
QUIET = ("--metrics.extractor", "none", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
NOT_THE_MODEL = ("runs", "ledger", "compartments.lock", "exclusions")  # logs, dates, and what was forgotten


def command(*words: object) -> None:
    """Run one command of the package; an error ends the script."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "cdm_lightning", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr}")


def content(store: Path) -> dict[str, bytes]:
    """Return the bytes of the model in a store by path."""
    found = {str(path.relative_to(store)): path for path in sorted(store.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(NOT_THE_MODEL)}


def write_images(folder: Path) -> list[tuple[str, str, str]]:
    """Write every digit as PNG, and return the rows path, source, label."""
    digits, rows = load_digits(), []
    folder.mkdir(parents=True)
    for k, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(folder / f"{k:04d}.png")
        rows.append((f"images/{k:04d}.png", f"digit{target}", f"digit{target}"))
    return rows


def write_shards(rows: Sequence[tuple[str, str, str]], folder: Path, name: str) -> None:
    """Write shards from a list of images."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "source", "label"), *rows])
    options = ("--size", 8, "--channels", 1, "--public-fraction", 0.4, "--shards-per-source", 2)
    where = ("--input", folder / f"{name}.csv", "--out", folder / name)
    command("shards", "--from", "list", *where, "--heldout-fraction", 0.1, *options)


class Trial:
    """One kind of compartment in a folder that holds the shards `all` and `without`, and a backbone."""

    def __init__(self, folder: Path, kind: str, steps: int) -> None:
        self.folder, self.place = folder, folder / kind
        self.options: tuple[object, ...] = ("--model.compartment", kind, "--trainer.max_steps", steps)

    def fit(self, store: Path, sources: str, root: str = "all", *options: object) -> None:
        """Fit sources into a store, one after another in one command."""
        where = ("--store", store, "--data.root", self.folder / root, "--data.from", "list", "--data.split", "list")
        chosen = ("--data.sources", f"[{sources}]")
        command("fit", "--config", CONFIG, *TRANSFORMER, *where, *chosen, *self.options, *QUIET, *options)

    def store(self, name: str, start: Path | None = None) -> Path:
        """Return a copy of a store; by default of the one that holds the backbone alone."""
        return Path(shutil.copytree(start or self.folder / "backbone", self.place / name))

    def sources(self) -> Iterator[tuple[str, bool]]:
        """Yield what was compared for whole sources, and whether the bytes are the same."""
        forgotten, never, later = self.store("forgotten"), self.store("never"), self.store("later")
        self.fit(forgotten, f"{A}, {B}, {C}")
        had = content(forgotten)
        command("forget", "--store", forgotten, "--source", B)
        self.fit(never, f"{A}, {C}")
        yield "a, b, c then forget b = a, c", content(forgotten) == content(never) != had
        self.fit(later, A)
        self.fit(later, C)
        yield "a, c = a, and c later", content(never) == content(later)

    def samples(self, key: str) -> Iterator[tuple[str, bool]]:
        """Yield the same for one image of c; `sources` comes first."""
        had, excluded, unseen = self.place / "never", self.store("excluded"), self.store("unseen")
        (self.folder / "keys").write_text(f"{key}\n")
        self.fit(excluded, f"{A}, {C}", "all", "--data.exclude", self.folder / "keys")
        self.fit(unseen, f"{A}, {C}", "without")
        yield "exclusion file = shards without k", content(excluded) == content(unseen) != content(had)
        for purge in ((), ("--purge",)):
            mine = self.store("mine" + "".join(purge), had)
            root = Path(shutil.copytree(self.folder / "all", self.place / f"root{''.join(purge)}"))
            command("forget", "--store", mine, "--root", root, "--sample", key, *purge)
            said = " ".join(("forget --sample k", *purge))
            yield f"{said} = a fit that never saw k", content(mine) == content(unseen)
        command("store", "verify", "--store", mine)
        own, without = content(root / C), content(self.folder / "without" / C)
        yield "shards after --purge = shards written without k", own == without


def key_of(root: Path) -> tuple[str, int]:
    """Return the key of the tenth training image of c, and its number among all digits."""
    samples = json.loads((root / C / "manifest.json").read_text())["samples"]
    key = sorted(key for key, sample in samples.items() if sample["part"] == "train")[9]
    return key, int(key.rpartition("-")[2])


def prepare(folder: Path, backbone_steps: int) -> str:
    """Write shards with all images and without one, and fit a backbone; return the key of the one."""
    rows = write_images(folder / "images")
    write_shards(rows, folder, "all")
    key, number = key_of(folder / "all")
    write_shards(rows[:number] + rows[number + 1 :], folder, "without")
    Trial(folder, "none", 0).fit(folder / "backbone", "", "all", "--model.backbone_steps", backbone_steps)
    return key


def compare(folder: Path, key: str, kind: str, steps: int, backbone_steps: int) -> dict[str, object]:
    """Return, for one kind of compartment, whether the bytes are the same, by comparison."""
    start, trial = time.perf_counter(), Trial(folder, kind, steps)
    trial.options = (*trial.options, "--model.backbone_steps", backbone_steps)
    found: dict[str, bool] = {}
    for said, same in (*trial.sources(), *trial.samples(key)):
        found[said] = same
        print(f"{kind}: {said}: {'the same bytes' if same else 'DIFFERENT'}", flush=True)
    seconds = round(time.perf_counter() - start, 1)
    settings = {"steps": steps, "backbone_steps": backbone_steps, "config": CONFIG, "seed": 0, "sample": key}
    return {"same_bytes": found, "seconds": seconds, **settings, "versions": versions()}


def main() -> int:
    """Compare kind by kind, write each into `results/invariant.json`, and return 1 if any bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backbone-steps", type=int, default=100)
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "invariant.json", help="what it holds of other kinds stays"
    )
    given = parser.parse_args()
    kinds = json.loads(given.json.read_text()) if given.json.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        key = prepare(folder := Path(name), given.backbone_steps)
        for kind in given.kinds:
            kinds[kind] = compare(folder, key, kind, given.steps, given.backbone_steps)
            given.json.write_text(json.dumps(kinds, indent=1, sort_keys=True) + "\n")
    return 0 if all(all(kinds[kind]["same_bytes"].values()) for kind in given.kinds) else 1


if __name__ == "__main__":
    sys.exit(main())
