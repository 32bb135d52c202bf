"""The store. Oracles: round trips, bytes of a second process, and the state of the folder before a write was cut."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdm_lightning import ledger, store_commands
from cdm_lightning.card import Card, model_card
from cdm_lightning.errors import BadInput, StoreError, UnknownSource
from cdm_lightning.store import RESERVED, Store
from cdm_lightning.tensor_files import Json, file_sha256, read_tensors, write_tensors
from datamodules.names import RESERVED as OF_SHARDS
from tests.faults import Fault, failing_at, operations_of

BACKBONE = {"weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "scale": torch.tensor(0.5)}
METADATA: dict[str, Json] = {"kind": "closed_form", "levels": [0.1, 80.0], "inner": {"b": 1, "a": None}}


def tensors(value: float) -> dict[str, Tensor]:
    return {"prompt": torch.full((2, 4), value), "means": torch.linspace(-1, 1, 5)}


def card(store: Store, source: str, n: int = 30) -> Card:
    return Card(
        source=source,
        n=n,
        class_counts={"3": n - 10, "11": 10},
        data_sha256="d" * 64,
        seed=0,
        steps=200,
        compartment="tokens",
        prompt_parameters=128,
        sigma_range=(0.002, 1.5),
        settings={"rank": 64, "guide": "closed_form", "ema": 0.99, "limit": None},
        backbone_sha256=store.info.backbone_sha256,
        image_shape=(1, 8, 8),
        torch_version="2.14.1",
        cpu_capability="AVX2",
        threads=1,
    )


def new_store(path: Path, backbone: dict[str, Tensor] = BACKBONE) -> Store:
    store = Store.create(path)
    store.write_backbone(backbone, METADATA, image_shape=(1, 8, 8), sigma_range=(0.002, 80.0), public_sha256="p" * 64)
    return store


def add(store: Store, source: str, value: float, n: int = 30) -> None:
    made = card(store, source, n)
    store.write_compartment(tensors(value), made)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, without ledger, locks and logs."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".jsonl"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def visible(store: Store) -> list[str]:
    return sorted(os.listdir(store.path / "compartments"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store with the compartments a and b."""
    store = new_store(tmp_path / "store")
    add(store, "b", 2.0, n=40)
    add(store, "a", 1.0)
    return store


def test_the_backbone_comes_back(store: Store) -> None:
    read, metadata = Store.open(store.path).read_backbone()
    assert set(read) == set(BACKBONE)
    assert all(torch.equal(read[name], BACKBONE[name]) for name in BACKBONE)
    assert metadata == METADATA


def test_store_json_pins_the_backbone_and_lists_no_source(store: Store) -> None:
    assert json.loads((store.path / "store.json").read_text()) == {
        "format": 2,
        "backbone_sha256": hashlib.sha256((store.path / "backbone.safetensors").read_bytes()).hexdigest(),
        "image_shape": [1, 8, 8],
        "sigma_range": [0.002, 80.0],
        "public_data_sha256": "p" * 64,
    }
    assert store.info.image_shape == (1, 8, 8)
    assert store.info.sigma_range == (0.002, 80.0)


def test_a_compartment_comes_back(store: Store) -> None:
    read, read_card = store.read_compartment("a")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors(1.0).items())
    assert set(read) == {"prompt", "means"}
    assert read_card == card(store, "a")


def test_one_compartment_is_read_without_a_look_at_the_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "sources", lambda self: pytest.fail("all sources were listed"))
    assert store.read_compartment("a")[1].source == "a"
    for name in ("c", "../compartments/a", ".a"):
        with pytest.raises(pytest.fail.Exception, match="all sources were listed"):
            store.read_card(name)


def test_a_compartment_has_three_files_and_nothing_else_is_left(store: Store) -> None:
    assert visible(store) == ["a", "b"]
    assert sorted(os.listdir(store.folder("a"))) == ["README.md", "card.json", "compartment.safetensors"]
    assert sorted(path.name for path in store.path.iterdir()) == sorted(
        ["backbone.safetensors", "compartments", "compartments.lock", "ledger.jsonl", "ledger.lock", "store.json"]
    )


def test_the_ledger_is_written(store: Store) -> None:
    before = file_sha256(store.folder("a") / "compartment.safetensors")
    add(store, "a", 3.0)
    after = file_sha256(store.folder("a") / "compartment.safetensors")
    entries = ledger.read(store.path / "ledger.jsonl")
    named = [("added", "public"), ("added", "b"), ("added", "a"), ("refitted", "a")]
    assert [(entry.event, entry.source) for entry in entries] == named
    assert entries[0].after == file_sha256(store.path / "store.json")
    assert entries[2].before is None
    assert (entries[3].before, entries[3].after) == (before, after)
    assert before != after
    ledger.verify(store.path / "ledger.jsonl")


def test_inputs_leave_out_the_environment_alone(store: Store) -> None:
    one = card(store, "a")
    for name in (field.name for field in dataclasses.fields(Card)):
        change: dict[str, Any] = {name: "other"}
        same = dataclasses.replace(one, **change).inputs() == one.inputs()
        assert same == (name in ("torch_version", "cpu_capability", "threads"))


@pytest.mark.parametrize(("drop", "put", "text"), [("n", {}, "lacks key 'n'"), ("", {"path": 1}, "unknown key 'path'")])
def test_a_card_with_other_keys_is_refused(store: Store, drop: str, put: dict[str, int], text: str) -> None:
    path = store.folder("a") / "card.json"
    values = json.loads(path.read_text()) | put
    values.pop(drop, None)
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=rf"card\.json .*{text}"):
        store.read_card("a")


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_card_is_refused(store: Store, text: str) -> None:
    (store.folder("a") / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"card\.json is damaged .*restore it from a copy or fit it again"):
        store.read_card("a")


def test_a_renamed_compartment_is_refused(store: Store) -> None:
    store.folder("a").rename(store.folder("c"))
    with pytest.raises(StoreError, match=r"is the card of 'a'"):
        store.read_card("c")


def test_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    given = {
        "transposed": base.T,
        "shared": base,
        "half": base.to(torch.bfloat16),
        "integers": torch.tensor([1, 2]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5, requires_grad=True),
    }
    write_tensors(tmp_path / "x.safetensors", given, {})
    read, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {}
    assert set(read) == set(given)
    assert all(torch.equal(read[k], given[k]) and read[k].dtype == given[k].dtype for k in given)


WRITE = """
import sys, torch
from pathlib import Path
from cdm_lightning.tensor_files import write_tensors
names = sys.argv[2].split(",")
tensors = {name: torch.arange(len(name) * 3.0) for name in names}
write_tensors(Path(sys.argv[1]), tensors, {name: {"size": len(name)} for name in names})
"""


def test_equal_content_gives_equal_bytes_in_two_processes(tmp_path: Path) -> None:
    for file, names in (("1", "a,bb,ccc,dddd"), ("2", "dddd,bb,a,ccc")):
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / file), names], check=True, timeout=120)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}, {"kind": "test"})
    intact = path.read_bytes()
    for position in range(len(intact)):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 0xFF]) + intact[position + 1 :])
        with pytest.raises(StoreError, match=r"x\.safetensors is damaged.*restore it from a copy or fit it again"):
            read_tensors(path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_cut_file_is_noticed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"x\.safetensors is damaged"):
        read_tensors(path)


def test_a_missing_file_is_named(store: Store) -> None:
    (store.folder("a") / "compartment.safetensors").unlink()
    with pytest.raises(StoreError, match=r"compartment\.safetensors is missing"):
        store.read_compartment("a")


def test_showing_a_source_without_its_tensors_names_the_file(store: Store) -> None:
    (store.folder("a") / "compartment.safetensors").unlink()
    with pytest.raises(StoreError, match="compartment.safetensors is missing: restore it"):
        store_commands.details_data(store, "a")


def test_a_changed_backbone_is_noticed(store: Store) -> None:
    write_tensors(store.path / "backbone.safetensors", BACKBONE, {})
    with pytest.raises(StoreError, match=r"backbone\.safetensors has changed"):
        store.read_backbone()


def test_a_second_backbone_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"has a backbone, .*use another --store"):
        new_store(store.path)


def test_a_compartment_of_another_backbone_is_refused(store: Store, tmp_path: Path) -> None:
    other = new_store(tmp_path / "other", {"weight": torch.zeros(1)})
    store.folder("a").rename(other.folder("a"))
    with pytest.raises(StoreError, match=r"was fitted on another backbone .*fit it again on this store's or add it"):
        other.read_compartment("a")


def test_no_store_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a folder with store\.json; make one with `.* fit "):
        Store.open(tmp_path / "none")


def test_another_format_is_refused(store: Store) -> None:
    values = json.loads((store.path / "store.json").read_text()) | {"format": 1}
    (store.path / "store.json").write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"has format 1, but this version reads 2"):
        Store.open(store.path)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file is not a folder"):
        Store.create(tmp_path / "file")


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "new")
    assert not store.has_backbone()
    assert store.sources() == []
    assert new_store(tmp_path / "new").has_backbone()
    assert store.runs == tmp_path / "new" / "runs"


def test_sources_are_sorted_and_temporary_folders_are_none(store: Store) -> None:
    store.folder("a").rename(store.folder(".x.tmp-1"))
    store.folder("no-card").mkdir()
    add(store, "digit0", 0.0)
    assert store.sources() == ["b", "digit0"]


def test_an_unknown_source_is_told_with_the_nearest(store: Store) -> None:
    add(store, "digit0", 0.0)
    with pytest.raises(UnknownSource, match=r"unknown source 'digit1': .* has a, b, digit0; did you mean 'digit0'\?"):
        store.read_compartment("digit1")


def test_choose(store: Store) -> None:
    assert store.choose("all") == ["a", "b"]
    assert store.choose(["b", "a"]) == ["b", "a"]
    with pytest.raises(UnknownSource, match=r"unknown source 'c'"):
        store.choose(["a", "c"])
    with pytest.raises(BadInput, match=r"source 'a' is chosen 2 times"):
        store.choose(["a", "b", "a"])
    with pytest.raises(BadInput, match=r"no source chosen: name some of a, b"):
        store.choose([])


def test_an_empty_store_has_no_source_to_choose(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the store is empty"):
        new_store(tmp_path / "store").choose("all")


@pytest.mark.parametrize("name", ["../a", "A", "", ".a", "1", "a/b", "a\n", "public"])
def test_a_source_is_a_name_and_no_path(store: Store, name: str) -> None:
    with pytest.raises(BadInput, match=r"is no name of a source"):
        store.write_compartment({}, dataclasses.replace(card(store, "a"), source=name))


@pytest.mark.parametrize("name", sorted(RESERVED - {"public"}))
def test_a_name_with_a_meaning_of_its_own_is_no_source(store: Store, name: str) -> None:
    with pytest.raises(BadInput, match=rf"'{name}' cannot name a source: all, .* are reserved"):
        store.write_compartment({}, dataclasses.replace(card(store, "a"), source=name))
    assert not store.folder(name).exists()


def test_shards_and_stores_reserve_the_same_names() -> None:
    assert RESERVED == OF_SHARDS


@pytest.mark.parametrize("source", ["a", "c"], ids=["replace", "add"])
def test_a_cut_write_is_undone_or_finished(store: Store, tmp_path: Path, source: str) -> None:
    before, whole = contents(store.path), Store(Path(shutil.copytree(store.path, tmp_path / "whole")))
    operations = operations_of(lambda: add(whole, source, 5.0))
    after, seen = contents(whole.path), set()
    for k in range(operations):
        mine = Store(Path(shutil.copytree(store.path, tmp_path / str(k))))
        with failing_at(k), pytest.raises(Fault):
            add(mine, source, 5.0)
        found = contents(Store.open(mine.path).path)
        assert found in (before, after)
        seen.add(found == after)
        newest = ledger.last(mine.path / "ledger.jsonl", source)
        held = file_sha256(mine.folder(source) / "compartment.safetensors") if mine.has_compartment(source) else None
        assert held == (newest.after if newest else None)
        add(mine, source, 5.0)
        assert contents(mine.path) == after
        ledger.verify(mine.path / "ledger.jsonl")
    assert seen == {True, False}


def test_a_full_disk_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:3])
        raise OSError(28, "No space left on device")

    before = contents(store.path)
    monkeypatch.setattr("cdm_lightning.exchange.write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        add(store, "a", 5.0)
    assert contents(store.path) == before


def test_a_cut_backbone_is_no_store_and_the_next_write_mends_it(tmp_path: Path) -> None:
    operations = operations_of(lambda: new_store(tmp_path / "whole"))
    for k in range(operations - 1):  # the last one is the clean-up of a name that is gone
        with failing_at(k), pytest.raises(Fault):
            new_store(tmp_path / str(k))
        assert not Store(tmp_path / str(k)).has_backbone()
        new_store(tmp_path / str(k))
        found = contents(tmp_path / str(k))
        assert {name: data for name, data in found.items() if ".tmp-" not in name} == contents(tmp_path / "whole")


def test_a_write_waits_for_another_write(store: Store) -> None:
    before = contents(store.path)
    writer = threading.Thread(target=add, args=(store, "a", 5.0))
    with ledger.locked(store.path / "compartments.lock"):
        writer.start()
        writer.join(timeout=0.3)
        assert writer.is_alive()
        assert contents(store.path) == before
    writer.join(timeout=60)
    assert torch.equal(store.read_compartment("a")[0]["prompt"], tensors(5.0)["prompt"])


def test_a_deleted_compartment_does_not_come_back(store: Store) -> None:
    old = store.folder(".a.old-1")
    store.folder("a").rename(old)
    assert Store.open(store.path).sources() == ["b"]
    assert not old.exists()
    newest = ledger.last(store.path / "ledger.jsonl", "a")
    assert newest is not None
    assert newest.event == "forgotten"


def test_compartments_do_not_depend_on_other_sources(store: Store, tmp_path: Path) -> None:
    alone = new_store(tmp_path / "alone")
    add(alone, "a", 1.0)
    assert contents(store.folder("a")) == contents(alone.folder("a"))


def test_the_model_card_says_what_a_person_must_know(store: Store) -> None:
    text = model_card(card(store, "a"))
    for said in ("`a`", "30 distinct", "| 11 | 10 |", "1x8x8", "200 steps", "0.002 to 1.5", "| rank | 64 |"):
        assert said in text
    for said in ("forget --store STORE --source", "Statistics are not anonymous", "may reveal the images"):
        assert said in " ".join(text.split())
    assert str(store.path) not in text
    assert "No prompt was trained." in model_card(dataclasses.replace(card(store, "a"), sigma_range=None))


def test_listing(store: Store) -> None:
    (store.folder("a") / "README.md").write_text("a")
    (store.folder("a") / "card.json").write_text(json.dumps(json.loads((store.folder("a") / "card.json").read_text())))
    sizes = [sum(file.stat().st_size for file in store.folder(source).iterdir()) for source in "ab"]
    assert store_commands.listing(store).split("\n") == [
        "source  n   classes  compartment  prompt_parameters  steps  epsilon  bytes",
        f"a       30  2        tokens       128                200    -        {sizes[0]}",
        f"b       40  2        tokens       128                200    -        {sizes[1]}",
    ]
    assert store_commands.listing_data(store)[1] == {
        "source": "b",
        "n": 40,
        "classes": 2,
        "compartment": "tokens",
        "prompt_parameters": 128,
        "steps": 200,
        "epsilon": None,
        "bytes": sizes[1],
    }


def test_listing_of_an_empty_store(tmp_path: Path) -> None:
    assert store_commands.listing(new_store(tmp_path / "s")) == f"{tmp_path}/s has no compartment yet: `fit` adds them"


DETAILS = """\
source             a
n                  30
class_counts.11    10
class_counts.3     20
data_sha256        {d}
seed               0
steps              200
compartment        tokens
prompt_parameters  128
sigma_range        0.002 1.5
settings.ema       0.99
settings.guide     closed_form
settings.limit     none
settings.rank      64
backbone_sha256    {backbone}
image_shape        1 8 8
torch_version      2.14.1
cpu_capability     AVX2
threads            1
bytes              {bytes}
sha256             {sha256}"""


def test_details(store: Store) -> None:
    files = list(store.folder("a").iterdir())
    assert store_commands.details(store, "a") == DETAILS.format(
        d="d" * 64,
        backbone=hashlib.sha256((store.path / "backbone.safetensors").read_bytes()).hexdigest(),
        bytes=sum(file.stat().st_size for file in files),
        sha256=hashlib.sha256((store.folder("a") / "compartment.safetensors").read_bytes()).hexdigest(),
    )
    with pytest.raises(UnknownSource, match=r"unknown source 'c'"):
        store_commands.details(store, "c")


LIST = """
import sys
from pathlib import Path
from cdm_lightning import store, store_commands
text = store_commands.listing(store.Store.open(Path(sys.argv[1])))
print(sorted({"torch", "lightning", "numpy", "safetensors"} & set(sys.modules)), text.splitlines()[1].split()[:2])
"""


def test_store_list_imports_neither_torch_nor_lightning(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST, str(store.path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[] ['a', '30']\n"


def test_whoever_stops_reading_the_output_sees_no_traceback(tmp_path: Path) -> None:
    """The pipe is closed before anything is written into it."""
    store = new_store(tmp_path / "store")
    add(store, "a", 1.0)
    words = [sys.executable, "-m", "cdm_lightning", "store", "list", "--store", str(store.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == b""
    assert process.returncode == 1


def one_stored(folder: Path) -> Store:
    """Return a store of one source."""
    store = new_store(folder / "store")
    add(store, "a", 1.0)
    return store


def test_a_card_that_is_not_of_these_tensors_is_refused_when_they_are_read(tmp_path: Path) -> None:
    store = one_stored(tmp_path)
    (store.folder("a") / "card.json").write_text(card(store, "a", n=31).to_json())
    with pytest.raises(StoreError, match="a card and tensors that do not belong together"):
        store.read_compartment("a")


def test_a_removal_that_was_cut_is_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = one_stored(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove_compartment("a")
    again = Store.open(store.path)
    assert [entry.event for entry in ledger.read(store.path / "ledger.jsonl") if entry.source == "a"] == [
        "added",
        "forgotten",
    ]
    assert [path.name for path in (again.path / "compartments").iterdir()] == []
