"""`forget --source`. Oracles: bytes of a store that never had it, a search for its name, faults at every operation."""

import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cdm_lightning import ledger
from cdm_lightning.cli import main
from cdm_lightning.image_folder import make_folder
from cdm_lightning.images import encode_png
from cdm_lightning.outputs import note_output, outputs_of
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.refit import recipe_of
from cdm_lightning.run_sources import SOURCES, drop_source, files_of, note_sources
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import file_sha256
from cdm_lightning.validation import finished_compartments
from datamodules.manifest import Manifest, read_manifest, write_manifest
from tests.conftest import Fit
from tests.faults import Fault, failing_at, operations_of
from tests.test_validate import copied

THREE = ["digit0", "digit1", "digit2"]


def forget(store: Path, source: str, *options: str) -> int:
    return main(["forget", "--store", str(store), "--source", source, *options])


def receipt(store: Path, source: str, place: Path, *options: str) -> dict[str, Any]:
    assert forget(store, source, "--json", str(place / "receipt.json"), *options) == 0
    found: dict[str, Any] = json.loads((place / "receipt.json").read_text())
    return found


def tree(folder: Path, *leave_out: str) -> dict[str, bytes]:
    """Return the bytes of every file by its path, but for those whose path starts in one of these ways."""
    paths = ((path, str(path.relative_to(folder))) for path in sorted(folder.rglob("*")) if path.is_file())
    return {name: path.read_bytes() for path, name in paths if not name.startswith(leave_out)}


@pytest.fixture(scope="module")
def logged(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of three digits whose fit has logged to TensorBoard; read it, do not change it."""
    place = copied(store, tmp_path_factory.mktemp("logged") / "store", [])
    logger = ("--trainer.logger", "true", "--metrics.extractor", "none")
    for source in THREE:
        assert fit(place, f"[{source}]", "--model.compartment", "tokens", "--trainer.max_steps", "3", *logger) == 0
    return place


@pytest.fixture
def mine(logged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(logged, tmp_path / "mine"))


def test_what_is_left_is_a_store_that_never_had_it(mine: Path, store: Path, fit: Fit, tmp_path: Path) -> None:
    assert forget(mine, "digit1") == 0
    never = copied(store, tmp_path / "never", [])
    assert fit(never, "[digit0, digit2]", "--model.compartment", "tokens", "--trainer.max_steps", "3") == 0
    assert tree(mine, "runs", "ledger") == tree(never, "runs", "ledger")


def test_its_name_is_nowhere_but_in_the_ledger(mine: Path) -> None:
    held = {name for name, data in tree(mine).items() if b"digit1" in data or "digit1" in name}
    assert held > {"compartments/digit1/card.json", "ledger.jsonl", "runs/sources/digit1/config.yaml"}
    assert any("runs/composed/events" in name for name in held)
    assert forget(mine, "digit1") == 0
    assert {name for name, data in tree(mine).items() if b"digit1" in data or "digit1" in name} == {"ledger.jsonl"}
    assert not list(mine.rglob("*digit1*"))
    first = [path for path in (mine / "runs" / "composed").iterdir() if path.name.startswith("events")]
    assert len(first) == 1, "the composed model of digit0 alone was validated before digit1 came"


def test_the_receipt_names_every_file_and_hash(mine: Path, tmp_path: Path) -> None:
    before, sha256 = (
        tree(mine),
        {source: file_sha256(mine / f"compartments/{source}/compartment.safetensors") for source in THREE},
    )
    found = receipt(mine, "digit1", tmp_path)
    after = tree(mine)
    assert {trace["path"] for trace in found["removed"]} == set(before) - set(after)
    assert all(len(before[trace["path"]]) == trace["bytes"] for trace in found["removed"])
    assert found["compartment_sha256"] == sha256.pop("digit1")
    assert found["others_sha256"] == sha256
    assert found["backbone_sha256"] == file_sha256(mine / "backbone.safetensors")
    entry = ledger.read(mine / "ledger.jsonl")[-1]
    assert (entry.event, entry.source, entry.before, entry.after) == (
        "forgotten",
        "digit1",
        found["compartment_sha256"],
        None,
    )
    ledger.verify(mine / "ledger.jsonl")


def test_a_dry_run_says_the_same_and_changes_nothing(mine: Path, tmp_path: Path) -> None:
    before = tree(mine)
    said = receipt(mine, "digit1", tmp_path, "--dry-run")
    assert tree(mine) == before
    done = receipt(mine, "digit1", tmp_path)
    differing = {key for key in said if said[key] != done[key]}
    assert differing <= {"dry_run", "date"}


def test_forgetting_twice_does_nothing_more(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(mine, "digit1") == 0
    before = tree(mine)
    capsys.readouterr()
    again = receipt(mine, "digit1", tmp_path)
    assert tree(mine) == before
    assert (again["removed"], again["compartment_sha256"]) == ([], None)
    assert "removed: nothing, no trace of it was left in the store" in capsys.readouterr().out


def test_the_last_source_can_be_forgotten_and_fitted_again(
    mine: Path, logged: Path, fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    for source in THREE:
        assert forget(mine, source) == 0
    assert Store.open(mine).sources() == []
    assert fit(mine, "[digit1]", "--model.compartment", "tokens", "--trainer.max_steps", "3") == 0
    date = ledger.read(mine / "ledger.jsonl")[-2].date
    assert f"source digit1: it was forgotten on {date}, and is learned again" in caplog.text
    assert Store.open(mine).forgotten_on("digit1") is None
    assert tree(mine / "compartments") == {
        name: data for name, data in tree(logged / "compartments").items() if name.startswith("digit1")
    }


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digit", "unknown source 'digit': .* has digit0, digit1, digit2; did you mean 'digit"),
        ("../mine", "'../mine' is no name of a source: expected a lower-case letter"),
    ],
)
def test_a_source_that_is_not_there(source: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(mine)
    assert forget(mine, source) == 2
    assert tree(mine) == before
    error = capsys.readouterr().err
    assert re.search(said, error), error


def test_nothing_is_lost_wherever_it_is_cut(mine: Path, tmp_path: Path) -> None:
    done = Path(shutil.copytree(mine, tmp_path / "done"))
    operations = operations_of(lambda: forget(done, "digit1"))
    assert operations > 12
    for k in range(operations):
        cut = Path(shutil.copytree(mine, tmp_path / f"cut{k}"))
        with failing_at(k), pytest.raises(Fault):
            forget(cut, "digit1")
        sources = Store.open(cut).sources()
        assert sources in (THREE, ["digit0", "digit2"])
        for source in sources:
            Store.open(cut).read_compartment(source)
        assert forget(cut, "digit1") == 0
        assert tree(cut, "ledger") == tree(done, "ledger"), k
        events = [(entry.event, entry.source) for entry in ledger.read(cut / "ledger.jsonl")]
        assert events == [("added", source) for source in THREE] + [("forgotten", "digit1")]
        ledger.verify(cut / "ledger.jsonl")
        shutil.rmtree(cut)


def test_outputs_elsewhere_are_listed_while_they_are_there(mine: Path, tmp_path: Path) -> None:
    def sample(name: str, sources: str) -> Path:
        options = ("--n", "1", "--steps", "2", "--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json"))
        assert main(["sample", "--store", str(mine), "--sources", sources, *options]) == 0
        return tmp_path / name

    both, other = sample("both", "[digit0, digit1]"), sample("other", "[digit0]")
    (tmp_path / "both.json").unlink()
    found = receipt(mine, "digit1", tmp_path)
    assert found["outputs"] == [str(both)]
    assert [left["path"] for left in found["out_of_reach"]][-2:] == [str(both), "ledger.jsonl"]
    assert other.exists()
    assert both.exists()
    shutil.rmtree(both)
    assert receipt(mine, "digit1", tmp_path)["outputs"] == []


def test_what_public_has_of_a_source_is_told(
    mine: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    for name in ("public", "digit1"):
        shutil.copytree(workplace / "shards" / name, root / name)
    own, public = read_manifest(root / "digit1"), read_manifest(root / "public")
    samples = dict(own.samples)
    for mine_too, key in zip(list(samples)[:3], public.samples, strict=False):
        samples[mine_too] = public.samples[key]
    write_manifest(root / "digit1", Manifest(own.source, own.licence, own.image, own.shards, samples))
    said = receipt(mine, "digit1", tmp_path, "--root", str(root), "--dry-run")
    labels = {sample.label for sample in samples.values()} & {sample.label for sample in public.samples.values()}
    assert said["public"] == {"checked": True, "classes": sorted(labels), "images": 3}
    assert {"path": str(root / "digit1"), "why": "its shards: delete them, or a later fit learns it again"} in said[
        "out_of_reach"
    ]
    assert f"public: it holds images of {', '.join(sorted(labels))} and 3 of its own images" in capsys.readouterr().out
    shutil.rmtree(root / "public")
    unknown = receipt(mine, "digit1", tmp_path, "--root", str(root), "--dry-run")
    assert unknown["public"] == {"checked": False, "classes": [], "images": 0}


def test_it_needs_neither_torch_nor_lightning_and_a_second(mine: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from cdm_lightning.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules or 'lightning' in sys.modules))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, "forget", "--store", str(mine), "--source", "digit1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


# --- the lists of sources


def test_files_belong_to_the_sources_of_the_note_before_them(tmp_path: Path) -> None:
    note_sources(tmp_path, ["a"])
    (tmp_path / "one").touch()
    note_sources(tmp_path, ["b", "a"])
    (tmp_path / "two").touch()
    (tmp_path / "three").touch()
    note_sources(tmp_path, ["b"])
    (tmp_path / "four").touch()
    names: Callable[[str], list[str]] = lambda source: [path.name for path in files_of(tmp_path, source)]  # noqa: E731
    assert names("a") == ["one", "three", "two"]
    assert names("b") == ["four", "three", "two"]
    assert names("c") == []
    drop_source(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four", SOURCES]
    assert names("b") == ["four"]
    (tmp_path / SOURCES).write_text("[")
    assert names("c") == ["four"], "what was noted is damaged: nothing is known, so it may be of any source"
    (tmp_path / SOURCES).unlink()
    assert names("c") == ["four"], "nothing was noted"
    drop_source(tmp_path, "c")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_written_again_is_of_both_runs(tmp_path: Path) -> None:
    note_sources(tmp_path, ["a"])
    for name in ("kept", "log"):
        (tmp_path / name).write_text("1")
    note_sources(tmp_path, ["b"])
    (tmp_path / "log").write_text("2")
    assert files_of(tmp_path, "b") == [tmp_path / "log"]
    (tmp_path / "other").write_text("3")
    note_sources(tmp_path, ["c"])
    drop_source(tmp_path, "x")
    assert files_of(tmp_path, "a") == [tmp_path / "kept", tmp_path / "log"]
    assert files_of(tmp_path, "b") == [tmp_path / "log", tmp_path / "other"]
    assert files_of(tmp_path, "c") == []


def test_files_belong_to_the_same_sources_in_a_copy_of_the_store(tmp_path: Path) -> None:
    """A copy may have other times: the note itself may seem to be the newest file, or the oldest."""
    note_sources(tmp_path / "runs", ["a"])
    (tmp_path / "runs" / "one").write_text("1")
    note_sources(tmp_path / "runs", ["b"])
    (tmp_path / "runs" / "two").write_text("2")
    for place, time in (("later", 2e9), ("earlier", 0.0)):
        copy = Path(shutil.copytree(tmp_path / "runs", tmp_path / place))
        os.utime(copy / SOURCES, (time, time))
        assert files_of(copy, "a") == [copy / "one"]
        assert files_of(copy, "b") == [copy / "two"]


@pytest.mark.parametrize("name", ["no", "on", "null", "true", "y", "e1", "digit1"])
def test_a_source_may_be_called_like_a_word_of_yaml(name: str, mine: Path) -> None:
    config = mine / "runs" / "sources" / "digit1" / "config.yaml"
    assert recipe_of(config, mine, name, "elsewhere").config.data.sources == [name]


def test_what_nobody_may_look_at_may_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Path.exists

    def refuse(path: Path) -> bool:
        if path.name == "x":
            raise PermissionError(13, "no", str(path))
        return there(path)

    note_output(tmp_path / "runs", tmp_path / "x", ["a"])
    assert outputs_of(tmp_path / "runs", "a") == []
    monkeypatch.setattr(Path, "exists", refuse)
    assert outputs_of(tmp_path / "runs", "a") == [tmp_path / "x"]


def test_the_composed_model_is_of_the_sources_that_were_noted(mine: Path) -> None:
    """Others may come and go while it is opened: digit1 and digit2 came since, digit9 left."""
    store = Store.open(mine)
    backbone, public = unpack_backbone(*store.read_backbone())
    assert list(finished_compartments(store, ["digit0", "digit9"], backbone, public)) == ["digit0"]


def test_another_source_that_is_damaged_is_no_obstacle(mine: Path, tmp_path: Path) -> None:
    (mine / "compartments" / "digit0" / "compartment.safetensors").unlink()
    found = receipt(mine, "digit1", tmp_path)
    assert sorted(found["others_sha256"]) == ["digit2"]
    assert not (mine / "compartments" / "digit1").exists()


def test_the_shards_are_those_of_the_source_s_own_fit(mine: Path, tmp_path: Path) -> None:
    """Another source was fitted from another folder since, so the composed model's configuration names that one."""
    config = mine / "runs" / "composed" / "config.yaml"
    own = yaml.safe_load((mine / "runs" / "sources" / "digit1" / "config.yaml").read_text())["data"]["root"]
    config.write_text(config.read_text().replace(own, str(tmp_path / "elsewhere")))
    assert f"{own}/digit1" in [left["path"] for left in receipt(mine, "digit1", tmp_path)["out_of_reach"]]


def test_shards_that_are_not_seen_from_here_are_told(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mine / "runs" / "sources" / "digit1" / "config.yaml"
    own = yaml.safe_load(config.read_text())["data"]["root"]
    config.write_text(config.read_text().replace(own, "data/mine"))
    monkeypatch.chdir(tmp_path)
    told = {left["path"]: left["why"] for left in receipt(mine, "digit1", tmp_path, "--dry-run")["out_of_reach"]}
    assert told["data/mine/digit1"].startswith("its shards, as seen from where it was fitted, but not from here")


def test_shards_of_an_unfinished_training_are_known(mine: Path, tmp_path: Path) -> None:
    unfinished = mine / "runs" / "sources" / "digit9" / "unfinished.yaml"
    unfinished.parent.mkdir()
    unfinished.write_text(f"data: {{root: {tmp_path}}}\n")
    (tmp_path / "digit9").mkdir()
    assert str(tmp_path / "digit9") in [left["path"] for left in receipt(mine, "digit9", tmp_path)["out_of_reach"]]


def test_logs_elsewhere_are_listed(store: Path, fit: Fit, tmp_path: Path) -> None:
    mine, logs = copied(store, tmp_path / "mine", []), tmp_path / "logs"
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(logs))
    options = ("--model.compartment", "tokens", "--trainer.max_steps", "3", *logger)
    assert fit(mine, "[digit0]", *options) == 0
    assert fit(mine, "[digit1]") == 0
    assert logs.is_dir()
    listed = {
        source: [left["path"] for left in receipt(mine, source, tmp_path)["out_of_reach"]] for source in THREE[:2]
    }
    assert [str(logs) in paths for paths in listed.values()] == [True, False]


def test_one_source_at_a_time(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(mine)
    assert forget(mine, "digit0", "--source=digit1") == 2
    assert "--source is given more than once" in capsys.readouterr().err
    assert tree(mine) == before


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("command", ["sample", "restore"])
def test_images_of_a_source_that_leaves_while_they_are_made_are_not_kept(
    command: str,
    again: bool,
    mine: Path,
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, out = importlib.import_module(f"cdm_lightning.{command}_command"), tmp_path / "out"
    original = module.note_output

    def leaves(*arguments: Any) -> None:
        original(*arguments)
        assert receipt(mine, "digit1", tmp_path)["outputs"] == []
        if again:
            assert fit(mine, "[digit1]") == 0

    monkeypatch.setattr(module, "note_output", leaves)
    (tmp_path / "image.png").write_bytes(encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8)))
    given = ("--sigma", "0.5", str(tmp_path / "image.png")) if command == "restore" else ("--n", "1")
    assert main([command, "--store", str(mine), "--sources", "all", "--out", str(out), "--steps", "2", *given]) == 2
    assert f"'digit1' was {'fitted again' if again else 'forgotten'} while they were made" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_is_made_in_time_is_in_the_receipt(mine: Path, tmp_path: Path) -> None:
    store = Store.open(mine)
    note_output(store.runs, tmp_path / "out", ["digit1"])
    make_folder(tmp_path / "out", store, ["digit1"], store.tensors_sha256(["digit1"]))
    assert receipt(mine, "digit1", tmp_path)["outputs"] == [str(tmp_path / "out")]


def test_outputs_are_noted_once_and_survive_a_cut_line(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        (tmp_path / name).touch()
        for _ in range(2):
            note_output(tmp_path / "runs", tmp_path / name, ["b", "a"] if name != "y" else ["b"])
    path = tmp_path / "runs" / "outputs.jsonl"
    assert len(path.read_text().splitlines()) == 3
    path.write_bytes(path.read_bytes()[:-4])
    assert outputs_of(tmp_path / "runs", "a") == [tmp_path / "x"]
    note_output(tmp_path / "runs", tmp_path / "z", ["a"])
    assert outputs_of(tmp_path / "runs", "a") == [tmp_path / "x", tmp_path / "z"]
    assert outputs_of(tmp_path / "runs", "b") == [tmp_path / "x", tmp_path / "y"]


def test_a_store_that_cannot_be_written_to_notes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr("cdm_lightning.outputs.locked", refuse)
    note_output(tmp_path / "runs", tmp_path, ["a"])
    assert outputs_of(tmp_path / "runs", "a") == []
