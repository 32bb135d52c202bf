"""What an owner of n images gives away: near-copies and membership inference, composed and as one model of everything.

    python -m benchmarks.audit --backbone out/quality/stores/ours --classes out/quality/shards/classes \\
        --union out/quality/shards/union --out out/audit --name audit

Fits closed forms of n images of every source on a copy of the backbone, and one of all of these images as a single
source; then `audit`, with the guided network and without. The result is written after every n; sizes that NAME.json
holds already stay in it.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.backbones import copy_backbone, options_of
from benchmarks.quality_stores import CLUSTERS, CONFIG, UNION
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.audit_command import PICTURE, REPORT
from cdm_lightning.audit_table import percent
from cdm_lightning.cli import main as run
from cdm_lightning.measurement import COMPOSED
from cdm_lightning.seeding import stable_hash
from cdm_lightning.text_tables import markdown
from datamodules import ShardDataModule
from datamodules.names import TRAIN

SIZES = (20, 100, 500, 5000)
ALWAYS_CLOSED = "mono-closed-form@0.01"  # below every level at which losses are compared
QUIET = ("--metrics.extractor", "none", "--trainer.logger", "false")


def left_out(data: ShardDataModule, n: int) -> list[str]:
    """Return the keys of all training images but n of every source."""
    out = list[str]()
    for source in data.available_sources():
        out += sorted(data.used(source, TRAIN), key=lambda key: stable_hash("audit", key))[n:]
    return out


def fitted(backbone: Path, store: Path, root: Path, exclude: Path, split: str, clusters: int) -> Path:
    """Fit closed forms into a store on a copy of a backbone; what is up to date is left as it is."""
    copy_backbone(backbone, store)
    data = ["--data.root", str(root), "--data.exclude", str(exclude), "--data.split", split]
    chosen = [*options_of(store), "--model.clusters", str(clusters)]
    _command("fit", "--config", CONFIG, "--store", str(store), *data, *chosen, *QUIET)
    return store


def audited(ours: Path, mono: Path, options: argparse.Namespace, exclude: Path) -> dict[str, Any]:
    """Return the report of both stores, with the network and without."""
    data = ["--root", options.classes, "--exclude", str(exclude), "--out", options.out, "--seed", str(options.seed)]
    rows = ["--strategies", "closed_form", "routed", "--against", f"{ALWAYS_CLOSED}={mono}", f"mono={mono}"]
    settings = ("n", "members", "draws", "extractor")
    measure = [word for name in settings for word in (f"--{name}", str(getattr(options, name)))]
    _command("audit", "--store", str(ours), "--sources", "all", *data, *rows, *measure)
    report: dict[str, Any] = json.loads((Path(options.out) / REPORT).read_text())
    return report


def _command(*arguments: str) -> None:
    if run(list(arguments)) != 0:
        raise SystemExit(f"failed: {' '.join(arguments)}")


def summary(by_size: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the composed models by n as a Markdown table."""
    some = [report["rows"][0]["groups"][COMPOSED]["memorization"] for report in by_size.values()]
    spaces = sorted({space for one in some for space in one})  # without an extractor there are no features
    near_copies = [f"near-copies, {space}" for space in spaces]
    lines = [["n", "model", *near_copies, "AUC", "found at 1 %", "falsely", "by"]]
    for n, report in sorted(by_size.items(), key=lambda item: int(item[0])):
        for row in report["rows"]:
            found = row["groups"][COMPOSED]
            copies, told = found["memorization"], found["membership"]
            area = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**told["auc"])
            shares = [percent(told[name]) for name in ("true_positives", "false_positives")]
            near = [percent(copies[space]["near_copies"]) if space in copies else "-" for space in spaces]
            lines.append([n, row["name"].partition("@")[0], *near, area, *shares, told["statistic"]])
    return markdown(lines)


def measured(options: argparse.Namespace, n: int) -> dict[str, Any]:
    """Fit n images of every source, and audit both models."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    exclude = out / f"all-but-{n}.txt"
    data = ShardDataModule(options.classes, image_size=options.size, channels=1)
    exclude.write_text("\n".join(left_out(data, n)) + "\n")
    backbone = Path(options.backbone)
    ours = fitted(backbone, out / f"ours-{n}", Path(options.classes), exclude, "class", CLUSTERS)
    mono = fitted(backbone, out / f"mono-{n}", Path(options.union), exclude, "random:1", UNION)
    return audited(ours, mono, options, exclude)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("backbone", "classes", "union", "out", "name"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("n", 200), ("members", 200), ("draws", 2), ("seed", 0), ("size", 28)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--extractor", default="effnet-lite0", help="as in `audit`")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    return parser.parse_args(words)


def main() -> None:
    """Write NAME.json and NAME_N.png into benchmarks/results, and print the table."""
    options = arguments()
    file = RESULTS / f"{options.name}.json"
    by_size: dict[str, dict[str, Any]] = json.loads(file.read_text())["by_size"] if file.exists() else {}
    for n in options.sizes:
        by_size[str(n)] = report = measured(options, n)
        for place in ("store", "root", "exclude"):
            del report[place]
        shutil.copy(Path(options.out) / PICTURE, RESULTS / f"{options.name}_{n}.png")
        result = {"by_size": by_size, "versions": versions()}
        file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(by_size))


if __name__ == "__main__":
    main()
