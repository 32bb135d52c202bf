"""`verify-forgotten`. Oracles: stores fitted without the source, and stores in which something of it is left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.store import Store
from datamodules.manifest import read_manifest, usable
from tests.conftest import Fit
from tests.test_forget import forget
from tests.test_store import contents

TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", "3")


@pytest.fixture(scope="module")
def three(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of three digits, two of them with prompts; read it, do not change it."""
    place = export_backbone(Store.open(store), tmp_path_factory.mktemp("three") / "store").path
    assert fit(place, "[digit0, digit1]", *TOKENS) == 0
    assert fit(place, "[digit2]") == 0
    return place


@pytest.fixture(scope="module")
def never(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that never had digit1; read it, do not change it."""
    place = export_backbone(Store.open(store), tmp_path_factory.mktemp("never") / "store").path
    assert fit(place, "[digit2]") == 0
    assert fit(place, "[digit0]", *TOKENS) == 0
    return place


@pytest.fixture
def mine(three: Path, tmp_path: Path) -> Path:
    """Return a store that has forgotten digit1."""
    place = Path(shutil.copytree(three, tmp_path / "mine"))
    assert forget(place, "digit1") == 0
    return place


def verify(store: Path, source: str, *options: str) -> int:
    return main(["verify-forgotten", "--store", str(store), "--source", source, *options])


def test_what_was_forgotten_is_gone(
    mine: Path, never: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(mine)
    capsys.readouterr()
    options = ("--against", str(never), "--retrain", "--root", str(workplace / "shards"))
    assert verify(mine, "digit1", *options, "--json", str(tmp_path / "v.json")) == 0
    checks = json.loads((tmp_path / "v.json").read_text())
    assert all(check["holds"] for check in checks)
    assert [check["said"] for check in checks if "same bytes" in check["said"]] == [
        "digit0: the same bytes",
        "digit2: the same bytes",
    ] * 2
    assert "source 'digit1' is gone:\n  ok  the store is as its fits made it" in capsys.readouterr().out
    assert contents(mine) == before


def test_what_was_forgotten_of_another_source_stays_forgotten(mine: Path, workplace: Path) -> None:
    root = str(workplace / "shards")
    key = next(iter(usable(read_manifest(workplace / "shards" / "digit2"), "train", frozenset())))
    assert main(["forget", "--store", str(mine), "--root", root, "--sample", key]) == 0
    assert verify(mine, "digit1", "--retrain", "--root", root) == 0


def test_no_shards_are_written_to_learn_from(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there are none, the images of whoever was forgotten would be among them."""
    assert verify(mine, "digit1", "--retrain", "--root", str(tmp_path / "none")) == 2
    assert "--retrain finds no shards of source 'digit0'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_source_that_never_was_is_gone(never: Path) -> None:
    assert verify(never, "digit1") == 0


def left_in(three: Path, mine: Path) -> None:
    shutil.copytree(three / "compartments" / "digit1", mine / "compartments" / "digit1")


def a_checkpoint(three: Path, mine: Path) -> None:
    (mine / "runs" / "sources" / "digit1").mkdir()
    (mine / "runs" / "sources" / "digit1" / "last.ckpt").touch()


def another_prompt(three: Path, mine: Path) -> None:
    tensors, card = Store.open(mine).read_compartment("digit0")
    tensors["prompt.tokens"].add_(1e-6)
    Store.open(mine).write_compartment(tensors, card)


def no_ledger(three: Path, mine: Path) -> None:
    shutil.copy(three / "ledger.jsonl", mine / "ledger.jsonl")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (left_in, "NO  left of it: compartments/digit1/README.md, "),
        (a_checkpoint, "NO  left of it: runs/sources/digit1/last.ckpt"),
        (another_prompt, "NO  digit0: its bytes differ, fitted with the same versions"),
        (no_ledger, "NO  the ledger says that it was added on "),
    ],
)
def test_what_is_left_is_named(
    fault: Any, said: str, three: Path, mine: Path, never: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault(three, mine)
    assert verify(mine, "digit1", "--against", str(never)) == 2
    error = capsys.readouterr().err
    assert "it is not verified that source 'digit1' is gone:" in error
    assert said in error


def test_a_file_that_is_missing_is_named(mine: Path, never: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "compartments" / "digit0" / "README.md").unlink()
    assert verify(mine, "digit1", "--against", str(never)) == 2
    assert "NO  digit0: a file of its compartment is missing" in capsys.readouterr().err


def test_a_store_that_had_it_is_no_measure(mine: Path, three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(mine, "digit1", "--against", str(three)) == 2
    assert f"NO  {three} has a compartment of it too" in capsys.readouterr().err


@pytest.mark.parametrize(("seed", "code", "said"), [(0, 0, "bits may differ"), (7, 2, "its card differs in seed")])
def test_another_machine_has_the_cards_compared(
    seed: int, code: int, said: str, mine: Path, never: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    other = Store(Path(shutil.copytree(never, tmp_path / "other")))
    tensors, card = other.read_compartment("digit0")
    other.write_compartment(tensors, replace(card, threads=4, seed=seed))
    assert verify(mine, "digit1", "--against", str(other.path)) == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert code or "threads 1 and 4" in captured.out


def test_without_its_configuration_nothing_can_be_fitted_again(
    mine: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "runs" / "sources" / "digit2" / "config.yaml").unlink()
    assert verify(mine, "digit1", "--retrain", "--root", str(workplace / "shards")) == 2
    assert "nobody knows how 'digit2' was fitted: use --against" in capsys.readouterr().err
