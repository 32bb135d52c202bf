"""Several processes that write into one store. Oracle: the bytes of one after the other."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from cdm_lightning import fitting, ledger
from cdm_lightning.claim import claimed
from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.errors import BadInput
from cdm_lightning.store import Store
from cdm_lightning.verification import faults
from tests.conftest import Fit
from tests.test_forget import tree
from tests.test_forget_samples import keys_of

SECONDS = 60
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def mine(store: Path, tmp_path: Path) -> Path:
    """Return a store with a backbone and nothing else."""
    return export_backbone(Store.open(store), tmp_path / "mine").path


def started(action: Callable[[], int]) -> BaseProcess:
    process = FORK.Process(target=lambda: os._exit(action()))
    process.start()
    return process


def held(fit: Fit, store: Path, source: str) -> tuple[BaseProcess, Event]:
    """Return a process that is in the middle of fitting a source, and what lets it go on."""
    inside, go_on = FORK.Event(), FORK.Event()
    original = fitting.fit_untrained

    def waiting(*arguments: object) -> object:
        inside.set()
        assert go_on.wait(SECONDS)
        return original(*arguments)  # type: ignore[arg-type]

    def action() -> int:
        fitting.fit_untrained = waiting  # type: ignore[assignment]
        return fit(store, f"[{source}]")

    process = started(action)
    assert inside.wait(SECONDS)
    return process, go_on


def test_who_comes_second_to_a_source_is_told_who_was_first(
    mine: Path, store: Path, workplace: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, go_on = held(fit, mine, "digit1")
    before = tree(mine)
    key = keys_of(workplace, "digit1", "train")[0]
    seconds = {
        "fit": lambda: fit(mine, "[digit1]"),
        "sample": lambda: main(["forget", "--store", str(mine), "--root", str(workplace / "shards"), "--sample", key]),
        "add": lambda: main(["store", "add", "--store", str(mine), str(store / "compartments" / "digit1")]),
    }
    for name, second in seconds.items():
        capsys.readouterr()
        assert second() == 2, name
        said = capsys.readouterr().err
        assert f"source 'digit1' is being fitted by process {process.pid} of " in said, name
        assert said.count("\n") == 1
        assert tree(mine) == before
    go_on.set()
    process.join(SECONDS)
    assert process.exitcode == 0
    assert tree(mine / "compartments") == {
        name: data for name, data in tree(store / "compartments").items() if name.startswith("digit1")
    }
    assert faults(Store.open(mine)) == []
    assert not list((mine / "runs").glob("digit*.lock"))


def test_a_source_cannot_be_forgotten_while_it_is_fitted_and_a_killed_fit_is_in_nobodys_way(
    mine: Path, store: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(mine, "[digit1]", "--model.compartment", "tokens", "--trainer.max_steps", "2") == 0
    process, _ = held(fit, mine, "digit1")
    before = tree(mine)
    assert main(["forget", "--store", str(mine), "--source", "digit1"]) == 2
    assert f"is being fitted by process {process.pid}" in capsys.readouterr().err
    assert tree(mine) == before
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(SECONDS)
    assert (mine / "runs" / "digit1.lock").exists()
    assert fit(mine, "[digit1]") == 0
    assert tree(mine / "compartments" / "digit1") == tree(store / "compartments" / "digit1")
    assert main(["forget", "--store", str(mine), "--source", "digit1"]) == 0
    assert faults(Store.open(mine)) == []
    assert not list(mine.rglob("*digit1*"))


def test_four_writers_of_four_sources_are_as_one_after_the_other(
    mine: Path, store: Path, fit: Fit, tmp_path: Path
) -> None:
    sources = ("digit0", "digit1", "digit2", "digit3")
    alone = Path(shutil.copytree(store, tmp_path / "alone"))
    assert fit(alone, "[digit3]") == 0
    writers = [held(fit, mine, source) for source in sources]
    for _, go_on in writers:
        go_on.set()
    for process, _ in writers:
        process.join(SECONDS)
        assert process.exitcode == 0
    assert tree(mine / "compartments") == tree(alone / "compartments")
    assert faults(Store.open(mine)) == []
    assert sorted(entry.source for entry in ledger.read(mine / "ledger.jsonl")) == [*sources, "public"]


def test_two_fits_of_a_new_store(store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, go_on = FORK.Event(), FORK.Event()
    original = fitting.fit_public

    def waiting(*arguments: object, **named: object) -> object:
        inside.set()
        assert go_on.wait(SECONDS)
        return original(*arguments, **named)  # type: ignore[arg-type]

    def action() -> int:
        fitting.fit_public = waiting  # type: ignore[assignment]
        return fit(tmp_path / "new", "[digit0]")

    process = started(action)
    assert inside.wait(SECONDS)
    assert fit(tmp_path / "new", "[digit1]") == 2
    assert "source 'public' is being fitted by process" in capsys.readouterr().err
    go_on.set()
    process.join(SECONDS)
    assert process.exitcode == 0
    assert fit(tmp_path / "new", "[digit1]") == 0
    assert tree(tmp_path / "new", "runs", "ledger", "compartments") == tree(store, "runs", "ledger", "compartments")
    assert Store.open(tmp_path / "new").sources() == ["digit0", "digit1"]


def test_what_is_left_of_a_lock_does_not_matter(tmp_path: Path) -> None:
    for left in (b"", b"{", b"[]", b'{"pid": 1}'):
        (tmp_path / "a.lock").write_bytes(left)
        with claimed(tmp_path, "a", "fitted"):
            assert str(os.getpid()).encode() in (tmp_path / "a.lock").read_bytes()
        assert not (tmp_path / "a.lock").exists()


def refused(runs: Path) -> int:
    try:
        with claimed(runs, "a", "fitted"):
            return 0
    except BadInput as error:
        return 2 if "is being" in str(error) and f"process {os.getppid()} of" in str(error) else 1


def interrupted(runs: Path) -> None:
    with claimed(runs, "a", "fitted"):
        second = started(lambda: refused(runs))
        second.join(SECONDS)
        assert second.exitcode == 2
        raise KeyboardInterrupt


def test_it_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path, "a", "fitted"), claimed(tmp_path, "b", "fitted"):
        pass
