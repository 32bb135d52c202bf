"""The quality table: five owners, or eight, against the best monoliths. Everything from images to tables, in one go.

    python -m benchmarks.quality --work out/quality [--input FOLDER] [--inception FILE] [--only NAME ...]
        [--device cuda] [--at_once 8]

Every step is a command of the project, in a process and with a log of its own; as many run at a time as --at_once says,
by default two, with one thread each. What is finished is skipped: run it again after an interruption. The tables are in
WORK/tables. WORK/times.json has the seconds that each step took: of the processor, so that other work on the machine
does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.backbones import copy_backbone, write_backbone_like
from benchmarks.quality_stores import BACKBONES, CONFIG, SPLITS, STORES, SWITCHED, Fitted
from benchmarks.quality_tables import SECOND, TABLES, Table
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.store import BACKBONE, Store
from cdm_lightning.tensor_files import write_report

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # of a step
QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--metrics.extractor", "none")
SHARDS = ("--from", "fashion_mnist", "--public-classes", "[0,2,4,6,8]", "--heldout-fraction", "0.1")


@dataclass(frozen=True)
class Step:
    """One command of the project.

    Attributes:
        arguments: of the command.
        needs: names of the steps that come before it.
        prepare: is called first.
    """

    arguments: list[str]
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Plan:
    """All steps by name, in the order in which they start if nothing is missing.

    Attributes:
        work: the folder of everything.
        input: folder of torchvision's FashionMNIST; None downloads it.
        inception: file of Inception's weights; None downloads them.
        device: that trains and samples.
    """

    work: Path
    input: str | None
    inception: str | None
    device: str = "cpu"

    def steps(self) -> dict[str, Step]:
        """Return every step by name."""
        shards = {f"shards of {split}": self._shards(split) for split in SPLITS}
        backbones = {f"backbone {name}": self._backbone(name) for name in BACKBONES}
        stores = {name: self.store(name, fitted) for name, fitted in STORES.items()}
        tables = {f"table {name}": self._table(name, table) for name, table in TABLES.items()}
        return shards | backbones | stores | tables

    def place(self, name: str) -> Path:
        """Return the folder of a store."""
        return self.work / "stores" / name

    def root(self, split: str) -> str:
        """Return the folder of the shards of a split."""
        return str(self.work / "shards" / split)

    def _shards(self, split: str) -> Step:
        source = ["--input", self.input] if self.input else []
        return Step(["shards", *SHARDS, *source, "--split", SPLITS[split], "--out", self.root(split)])

    def _fit(self, name: str, split: str) -> list[str]:
        where = ["--store", str(self.place(name)), "--data.root", self.root(split), "--data.split", SPLITS[split]]
        accelerator = "gpu" if self.device.startswith("cuda") else "cpu"
        return ["fit", "--config", CONFIG, *where, "--trainer.accelerator", accelerator, *QUIET]

    def _backbone(self, name: str) -> Step:
        needs: tuple[str, ...] = ("shards of classes",)
        prepare = None
        if name in SWITCHED:
            given, level = SWITCHED[name]
            needs, prepare = (*needs, f"backbone {given}"), lambda: self._with_switch(given, name, float(level))
        rest = name.rpartition("-")[2]
        seed = ["--seed", rest] if rest.isdecimal() else []
        store = f"backbone-{name}"
        return Step([*self._fit(store, "classes"), "--data.sources", "[]", *BACKBONES[name], *seed], needs, prepare)

    def _with_switch(self, given: str, name: str, switch: float) -> None:
        """Make a store of the same backbone whose prompts are trained up to another noise level."""
        place = self.place(f"backbone-{name}")
        if (place / BACKBONE).exists():
            return
        store = Store.open(self.place(f"backbone-{given}"))
        network, public = unpack_backbone(*store.read_backbone())
        write_backbone_like(store, place, network, replace(public, sigma_switch=switch), {"sigma_switch": switch})

    def store(self, name: str, fitted: Fitted) -> Step:
        """Return the step that fits a store, after its backbone and its shards."""
        arguments = [*self._fit(name, fitted.split), *fitted.arguments()]
        needs = (f"shards of {fitted.split}", f"backbone {fitted.backbone}")
        backbone = self.place(f"backbone-{fitted.backbone}")
        return Step(arguments, needs, lambda: copy_backbone(backbone, self.place(name)))

    def _table(self, name: str, table: Table) -> Step:
        opponents = [f"{label}={self.place(store)}" for label, store in table.against.items()]
        inception = ["--inception", self.inception] if self.inception and table.extractor == "inception" else []
        first = next(other for other, one in TABLES.items() if one.out == table.out)  # samples that both show
        needs = (table.store, *table.stores(), *([f"table {first}"] if first != name else []))
        where = [
            "--store",
            str(self.place(table.store)),
            "--sources",
            "all",
            "--out",
            str(self.work / "tables" / table.out),
        ]
        rows = ["--strategies", *table.strategies, "--against", *opponents, "--base", table.base]
        measured = ["--extractor", table.extractor, *inception, "--device", self.device]
        return Step(["evaluate", *where, *rows, *measured, *table.options], needs)


def run(steps: Mapping[str, Step], work: Path, at_once: int) -> None:
    """Run every step after those that it needs, and note what each took; stop at the first that fails.

    Args:
        steps: by name.
        work: the folder of logs and times.
        at_once: steps that may run at a time.

    Raises:
        SystemExit: a step failed; the last lines of its log are shown.
    """
    logs, times = work / "logs", work / "times.json"
    logs.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    waiting, done = dict(steps), set[str]()
    running: dict[Future[float], str] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            ready = [name for name, step in waiting.items() if set(step.needs) <= done]
            for name in ready[: at_once - len(running)]:
                running[pool.submit(one, name, waiting.pop(name), logs)] = name
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(finished)
                done.add(name)
                # A step that was finished before takes the seconds of a look, which say nothing.
                seconds[name] = max(round(finished.result(), 1), seconds.get(name, 0.0))
                write_report(times, seconds)


def one(name: str, step: Step, logs: Path) -> float:
    """Run one step, say how many seconds of the processor it took, and return them."""
    start, log = time.perf_counter(), logs / f"{name.replace(' ', '-')}.log"
    if step.prepare is not None:
        step.prepare()
    command = [sys.executable, "-m", "cdm_lightning", *step.arguments]
    with log.open("w") as file:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed; {log} ends with:\n" + "\n".join(log.read_text().splitlines()[-5:]))
    took = usage.ru_utime + usage.ru_stime
    print(f"{name}: {took:.0f} s of the processor, {time.perf_counter() - start:.0f} s by the clock", flush=True)
    return took


def chosen(steps: Mapping[str, Step], only: list[str]) -> dict[str, Step]:
    """Return the steps of these names, and all that they need; without a name, all tables but the second ones.

    Raises:
        SystemExit: there is no such step.
    """
    wanted, open_names = set[str](), only or [f"table {name}" for name in TABLES if name not in SECOND]
    while open_names:
        name = open_names.pop()
        if name not in steps:
            raise SystemExit(f"there is no step '{name}'; there are: {', '.join(steps)}")
        if name not in wanted:
            wanted.add(name)
            open_names += steps[name].needs
    return {name: step for name, step in steps.items() if name in wanted}


def main() -> None:
    """Run all steps, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="out/quality", help="folder of shards, stores, logs and tables")
    parser.add_argument("--input", default=None, help="folder of torchvision's FashionMNIST; by default a download")
    parser.add_argument("--inception", default=None, help="file of Inception's weights; by default a download")
    parser.add_argument("--only", nargs="+", default=[], help="names of steps; with all that they need")
    parser.add_argument("--device", default="cpu", help="that trains and samples: cpu or cuda")
    parser.add_argument("--at_once", type=int, default=2, help="steps that may run at a time")
    options = parser.parse_args()
    work = Path(options.work)
    plan = Plan(work, options.input, options.inception, options.device)
    run(chosen(plan.steps(), options.only), work, options.at_once)


if __name__ == "__main__":
    main()
