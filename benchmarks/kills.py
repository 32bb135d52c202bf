"""`kill -9` from outside, at moments that a watch on the folders finds: does the same command end in the same bytes?

Every command is killed at each of its moments, the store is verified, and the command is run again. The oracle is the
folder that an undisturbed run leaves. `--fit` and `--data` are the configuration and the shards of the trial.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.versions import versions
from cdm_lightning.json_option import write_json

SOURCES = "[digit0, digit1]"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Trial:
    """A command in a folder that holds `store` and `data`, and patterns of files at whose appearance it is killed."""

    name: str
    command: Callable[[Path], Sequence[str]]
    start: Path
    moments: Sequence[str]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "cdm_lightning", *command], capture_output=True, text=True, check=False
    )


def content(place: Path) -> dict[str, bytes]:
    """Return the bytes of stores and shards by path, without logs, locks, the ledger's dates and secrets."""
    found = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    left_out = ("store/runs", "store/ledger", "store/exclusions", "store/compartments.lock")
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(left_out)}


def killed(command: Sequence[str], place: Path, pattern: str, patience: float) -> bool:
    """Start a command, kill it as soon as a new file or folder matches; return whether it was killed."""
    before = set(place.glob(pattern))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "cdm_lightning", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        if set(place.glob(pattern)) - before:
            break
        time.sleep(0.0005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def verified(place: Path) -> bool:
    """Return whether the store verifies; one without a backbone yet has nothing to verify."""
    store = place / "store"
    return not (store / "store.json").exists() or run(["store", "verify", "--store", str(store)]).returncode == 0


def outcome(trial: Trial, moment: str, oracle: dict[str, bytes], folder: Path) -> dict[str, object]:
    """Kill a command once, run it again, and return what was found."""
    place = Path(shutil.copytree(trial.start, folder / f"{trial.name}-killed", symlinks=True))
    was_killed = killed(trial.command(place), place, moment, patience=300)
    verifies = verified(place)
    again = run(trial.command(place))
    same = content(place) == oracle
    found = {"command": trial.name, "moment": moment, "killed": was_killed, "verifies": verifies}
    found |= {"again": again.returncode, "same_bytes": same, "verifies_after": verified(place)}
    print(found, again.stderr if again.returncode else "", flush=True)
    shutil.rmtree(place)
    return found


def trials(folder: Path, config: str, data: Path) -> list[Trial]:
    """Return the trials; the store that commands start from is fitted first."""

    def fit(place: Path) -> list[str]:
        where = ["--store", str(place / "store"), "--data.root", str(place / "data")]
        options = ["--metrics.extractor", "none", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
        return ["fit", "--config", config, "--model.backbone_steps", "20", "--data.sources", SOURCES, *where, *options]

    empty, full, home = folder / "empty", folder / "full", folder / "home"
    shutil.copytree(data, empty / "data")
    shutil.copytree(empty, full)
    assert run(fit(full)).returncode == 0
    shutil.copytree(full, home)
    assert run(["forget", "--store", str(home / "store"), "--source", "digit1"]).returncode == 0
    new = "store/compartments"
    return [
        Trial("fit", fit, empty, ["store/runs/public.lock", f"{new}/digit0", f"{new}/.digit1.*"]),
        Trial(
            "forget --source",
            lambda place: ["forget", "--store", str(place / "store"), "--source", "digit1"],
            full,
            ["store/runs/digit1.lock", f"{new}/.digit1.old-*", "store/runs/composed.lock*"],
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


def main() -> None:
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
            assert run(trial.command(whole)).returncode == 0
            oracle = content(whole)
            found += [outcome(trial, moment, oracle, Path(folder)) for moment in trial.moments]
            shutil.rmtree(whole)
    write_json(given.json, {"kills": found, "versions": versions()})


if __name__ == "__main__":
    main()
