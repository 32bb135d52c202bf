"""`store verify`. Oracles: every byte flipped, files moved between compartments, additions, an undamaged store."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cdm_lightning import ledger
from cdm_lightning.cli import main
from cdm_lightning.errors import StoreError
from cdm_lightning.store import Store
from cdm_lightning.verification import faults
from tests.faults import Fault, failing_at, operations_of
from tests.test_forget import forget, tree
from tests.test_store import add, card, new_store, one_stored


@pytest.fixture
def mine(tmp_path: Path) -> Store:
    """Return a store with the compartments a and b, of which one was fitted again, and one that was forgotten."""
    store = new_store(tmp_path / "store")
    for source, value in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("a", 4.0)):
        add(store, source, value)
    store.remove_compartment("c")
    return store


def test_a_store_as_it_was_made_has_no_fault(mine: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(mine) == []
    assert main(["store", "verify", "--store", str(mine.path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"as it was made: the backbone {mine.info.backbone_sha256[:12]}, the ledger and 2 compartments (a, b)"
    )


def test_a_store_without_compartments_may_lack_their_folder(tmp_path: Path) -> None:
    """Archives leave empty folders out."""
    empty = new_store(tmp_path / "store")
    shutil.rmtree(empty.path / "compartments", ignore_errors=True)
    assert faults(empty) == []


def test_a_real_store_has_no_fault(store: Path) -> None:
    assert faults(Store.open(store)) == []


def found_in(path: Path) -> list[str]:
    """Return the faults of a store; what keeps it from being opened is one."""
    try:
        return faults(Store.open(path))
    except StoreError as error:
        return [str(error)]


def test_a_flipped_bit_anywhere_is_found_and_named(mine: Store) -> None:
    for name, data in tree(mine.path).items():
        path = mine.path / name
        for place in range(0, len(data), 5):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
            found = found_in(mine.path)
            assert any(path.name in fault or str(path.parent) in fault for fault in found), f"{name}, byte {place}"
        path.write_bytes(data)
    assert faults(mine) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "compartments/a/card.json").unlink(), "compartments/a/card.json is missing"),
        (lambda path: (path / "backbone.safetensors").unlink(), "backbone.safetensors is missing"),
        (lambda path: shutil.rmtree(path / "compartments/a"), "a is missing, and the ledger does not say that 'a'"),
        (
            lambda path: shutil.copytree(path / "compartments/a", path / "compartments/d"),
            "d holds that of 'a'",
        ),
        (lambda path: shutil.copytree(path / "compartments/a", path / "compartments/d"), "says that 'd' never was"),
        (lambda path: (path / "notes.txt").touch(), "notes.txt does not belong to the store"),
        (lambda path: (path / "compartments/a/copy").touch(), "compartments/a/copy does not belong to the store"),
        (lambda path: (path / "compartments/stray").touch(), "compartments/stray does not belong to the store"),
        (lambda path: (path / "ledger.jsonl").unlink(), "store.json is not the one that the ledger names"),
    ],
)
def test_what_is_wrong_is_named(damage: object, said: str, mine: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(damage)
    damage(mine.path)
    assert main(["store", "verify", "--store", str(mine.path), "--json", str(mine.path.parent / "v.json")]) == 2
    assert said in capsys.readouterr().err
    assert any(said in fault for fault in json.loads((mine.path.parent / "v.json").read_text())["faults"])


def test_a_forgotten_compartment_that_is_put_back_is_found(mine: Store) -> None:
    kept = shutil.copytree(mine.folder("b"), mine.path.parent / "kept")
    mine.remove_compartment("b")
    assert faults(mine) == []
    shutil.copytree(kept, mine.folder("b"))
    assert [fault.split(", but ")[1] for fault in faults(mine)] == ["the ledger says that 'b' was forgotten"]


def test_an_older_state_of_a_compartment_is_found(mine: Store) -> None:
    kept = shutil.copytree(mine.folder("b"), mine.path.parent / "kept")
    add(mine, "b", 5.0)
    shutil.rmtree(mine.folder("b"))
    shutil.copytree(kept, mine.folder("b"))
    assert faults(mine) == [f"{mine.folder('b') / 'compartment.safetensors'} is not the one that the ledger names"]


def test_a_compartment_of_another_backbone_is_found(mine: Store, tmp_path: Path) -> None:
    other = new_store(tmp_path / "other", {"weight": torch.ones(3)})
    add(other, "b", 2.0)
    shutil.rmtree(mine.folder("b"))
    shutil.copytree(other.folder("b"), mine.folder("b"))
    assert any("b was fitted on another backbone" in fault for fault in faults(mine))
    assert card(other, "b").backbone_sha256 != mine.info.backbone_sha256


@pytest.mark.parametrize("action", ["add", "replace", "forget"])
def test_it_verifies_wherever_a_command_was_cut(action: str, mine: Store, tmp_path: Path) -> None:
    def act(store: Store) -> None:
        if action == "forget":
            assert forget(store.path, "a") == 0
        else:
            add(store, "d" if action == "add" else "a", 7.0)

    whole = Store(Path(shutil.copytree(mine.path, tmp_path / "whole")))
    operations = operations_of(lambda: act(whole))
    for k in range(operations):
        cut = Store(Path(shutil.copytree(mine.path, tmp_path / str(k))))
        with failing_at(k), pytest.raises(Fault):
            act(cut)
        assert faults(Store.open(cut.path)) == []
        act(cut)
        assert tree(cut.path, "ledger") == tree(whole.path, "ledger")
        assert faults(cut) == []
        ledger.verify(cut.path / "ledger.jsonl")


@pytest.mark.parametrize("name", ["backbone.safetensors", "runs"])
def test_a_link_in_place_of_a_file_of_the_store_is_found(name: str, tmp_path: Path) -> None:
    store = one_stored(tmp_path)
    store.runs.mkdir(exist_ok=True)
    (store.path / name).rename(tmp_path / "elsewhere")
    (store.path / name).symlink_to(tmp_path / "elsewhere")
    assert faults(store) == [f"{store.path / name} does not belong to the store"]


def test_a_link_in_place_of_a_file_of_a_compartment_is_found(tmp_path: Path) -> None:
    store = one_stored(tmp_path)
    path = store.folder("a") / "card.json"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert faults(store) == [f"{path} does not belong to the store"]


@pytest.mark.parametrize("name", ["ledger.lock", "compartments.lock"])
def test_what_is_hidden_in_a_lock_is_found(name: str, tmp_path: Path) -> None:
    store = one_stored(tmp_path)
    (store.path / name).write_text("a picture")
    assert faults(store) == [f"{store.path / name} should be empty"]
