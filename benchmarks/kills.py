"""`kill -9` from outside, at moments that a watch on the folders finds: does the same command end in the same bytes?

Every command is killed at each of its moments, the store is verified, and the command is run again. The oracle is the
folder that an undisturbed run leaves. `--fit` and `--data` are the configuration and the shards of the trial.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.versions import versions
from cdm_lightning.cli import main
from cdm_lightning.json_option import write_json
from cdm_lightning.refit import QUIET

SOURCES = "[digit0, digit1]"
FORK = multiprocessing.get_context("fork")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Trial:
    """A command in a folder that holds `store` and `data`, and patterns of files: it is killed as one comes or goes."""

    name: str
    command: Callable[[Path], Sequence[str]]
    start: Path
    moments: Sequence[str]


def started(command: Sequence[str], log: Path) -> BaseProcess:
    """Start a command in a process of its own, with the packages imported already; what it says goes into a file."""

    def child() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(main(list(command)))

    process = FORK.Process(target=child)
    process.start()
    return process


def run(command: Sequence[str], log: Path) -> int | None:
    """Run a command to its end, and return its exit code."""
    process = started(command, log)
    process.join()
    return process.exitcode


def content(place: Path) -> dict[str, bytes]:
    """Return the bytes of stores and shards by path, without logs, locks, the ledger's dates and secrets."""
    found = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    left_out = ("store/runs", "store/ledger", "store/exclusions", "store/compartments.lock")
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(left_out)}


def killed(command: Sequence[str], place: Path, pattern: str, log: Path) -> bool:
    """Start a command, kill it as soon as other files or folders match than before; return whether it was killed."""
    before = set(place.glob(pattern))
    process = started(command, log)
    assert process.pid is not None
    while process.is_alive() and set(place.glob(pattern)) == before:
        time.sleep(0.0002)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def verified(place: Path, log: Path) -> bool:
    """Return whether the store verifies; one without a backbone yet has nothing to verify."""
    store = place / "store"
    return not (store / "store.json").exists() or run(["store", "verify", "--store", str(store)], log) == 0


def outcome(trial: Trial, moment: str, oracle: dict[str, bytes], folder: Path) -> dict[str, object]:
    """Kill a command once, run it again, and return what was found."""
    place = Path(shutil.copytree(trial.start, folder / f"{trial.name}-killed", symlinks=True))
    log = folder / "log"
    was_killed = killed(trial.command(place), place, moment, log)
    verifies = verified(place, log)
    found = {"command": trial.name, "moment": moment, "killed": was_killed, "verifies": verifies}
    found |= {"again": run(trial.command(place), log), "same_bytes": content(place) == oracle}
    found["verifies_after"] = verified(place, log)
    print(found, log.read_text() if found["again"] else "", flush=True)
    shutil.rmtree(place)
    return found


def trials(folder: Path, config: str, data: Path) -> list[Trial]:
    """Return the trials; the store that commands start from is fitted first."""

    def fit(place: Path) -> list[str]:
        where = ["--store", str(place / "store"), "--data.root", str(place / "data")]
        options = ["--model.backbone_steps", "20", "--data.sources", SOURCES, "--trainer.limit_val_batches", "0"]
        return ["fit", "--config", config, *where, *options, *QUIET]

    empty, full, home = folder / "empty", folder / "full", folder / "home"
    shutil.copytree(data, empty / "data")
    shutil.copytree(empty, full)
    assert run(fit(full), folder / "log") == 0
    shutil.copytree(full, home)
    assert run(["forget", "--store", str(home / "store"), "--source", "digit1"], folder / "log") == 0
    new = "store/compartments"
    return [
        Trial("fit", fit, empty, ["store/runs/public.lock", f"{new}/digit0", f"{new}/.digit1.*"]),
        Trial(
            "forget --source",
            lambda place: ["forget", "--store", str(place / "store"), "--source", "digit1"],
            full,
            ["store/runs/digit1.lock", f"{new}/.digit1.old-*", "store/runs/sources/digit1"],
        ),
        Trial(
            "forget --sample --purge",
            lambda place: [
                *("forget", "--store", str(place / "store"), "--root", str(place / "data")),
                *("--sample", "digit-0011", "--purge"),
            ],
            full,
            ["store/exclusions/digit1.json", f"{new}/.digit1.*", "data/.cdm-old"],
        ),
        Trial(
            "store add",
            lambda place: ["store", "add", "--store", str(place / "store"), str(full / new / "digit1")],
            home,
            ["store/runs/digit1.lock", f"{new}/.digit1.*", f"{new}/digit1"],
        ),
    ]


def kill_all() -> None:
    """Run every trial and write `results/kills.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="digits_shards.yaml")
    parser.add_argument("--data", type=Path, default=Path("data/digits"), help="shards of `shards --from digits`")
    parser.add_argument("--json", default=str(RESULTS / "kills.json"))
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(Path(folder), given.config, given.data):
            whole = Path(shutil.copytree(trial.start, Path(folder) / "whole"))
            assert run(trial.command(whole), Path(folder) / "log") == 0
            oracle = content(whole)
            found += [outcome(trial, moment, oracle, Path(folder)) for moment in trial.moments]
            shutil.rmtree(whole)
    write_json(given.json, {"kills": found, "versions": versions()})


if __name__ == "__main__":
    kill_all()
