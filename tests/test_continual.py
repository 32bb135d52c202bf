"""`continual`. Oracles: `validate` on the same stores, bytes of a store that never had who left, an undisturbed run."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdm_lightning import continual_command
from cdm_lightning.cli import main
from cdm_lightning.continual import summary
from cdm_lightning.continual_table import table
from cdm_lightning.outputs import outputs_of
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor
from tests.test_forget import tree
from tests.test_validate import copied

ORDER = ["digit2", "digit0", "digit1"]
EVENTS = ["+ digit2", "+ digit0", "- digit2", "+ digit1"]
MEASURED = ("--metrics.extractor", "effnet-lite0", "--metrics.n", "8", "--sampler.steps", "5")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Put an extractor of few features in the place of EfficientNet-Lite0."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("fit_command", "validate_command"):
            patch.setattr(f"cdm_lightning.{module}.open_extractor", lambda name, weights: DummyExtractor(name))
        yield


def run(workplace: Path, store: Path, record: Path, *options: str) -> int:
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards"), "--store", str(store)]
    plan = ["--order", f"[{', '.join(ORDER)}]", "--forget-at", "[2:digit2]", "--json", str(record)]
    return main(["continual", *where, *plan, "--trainer.logger", "true", *MEASURED, *options])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("continual")


@pytest.fixture(scope="module")
def done(workplace: Path, store: Path, place: Path) -> Path:
    """Return the store of an experiment, whose record is record.json beside it; read both, do not change them."""
    mine = copied(store, place / "store", [])
    (mine / "ledger.jsonl").write_bytes((store / "ledger.jsonl").read_bytes().splitlines(keepends=True)[0])
    assert run(workplace, mine, place / "record.json") == 0
    return mine


@pytest.fixture(scope="module")
def record(done: Path) -> dict[str, Any]:
    return read(done.parent / "record.json")


@pytest.mark.parametrize(("row", "sources"), [(0, ["digit2"]), (1, ["digit0", "digit2"]), (2, ["digit0"]), (3, None)])
def test_every_row_is_what_validate_measures(
    row: int, sources: list[str] | None, done: Path, record: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    other = done if sources is None else copied(store, tmp_path / "other", sources)
    out = tmp_path / "validate.json"
    options = ("--sources", "all", "--n", "8", "--steps", "5", "--json", str(out))
    assert main(["validate", "--store", str(other), *options]) == 0
    found, mine = read(out), record["rows"][row]
    assert (mine["event"], mine["sources"]) == (EVENTS[row], found["sources"])
    for name in ("heldout_error", "compartments_sha256", "reference_images"):
        assert mine[name] == found[name]
    assert mine["scores"] == found["scores"]["composed"]
    assert list(mine["accuracy"].values()) == found["attribution"]["accuracy_by_source"]
    for name in ("extractor", "split", "sampler", "steps", "strategy", "n", "seed", "root", "heldout_error_sigma"):
        assert record[name] == found[name]


def test_nothing_is_forgotten_in_the_parameters(record: dict[str, Any]) -> None:
    rows, found = record["rows"], record["summary"]
    assert found["compartments_constant"] == dict.fromkeys(ORDER, True)
    assert (found["own_error"]["average_forgetting"], found["own_error"]["backward_transfer"]) == (0, 0)
    assert rows[0]["own_error"] == rows[0]["heldout_error"]
    assert len({row["own_error"]["digit0"] for row in rows[1:]}) == 1
    errors = [row["heldout_error"]["digit0"] for row in rows[1:]]
    expected = errors[-1] - min(errors[:-1])
    assert found["heldout_error"]["average_forgetting"] == pytest.approx(expected)
    assert "digit2" not in rows[3]["heldout_error"]


def test_a_compartment_that_changed_is_seen(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    changed["rows"][3]["compartments_sha256"]["digit0"] = "0" * 64
    found = summary(changed["rows"])
    assert found["compartments_constant"] == {"digit2": True, "digit0": False, "digit1": True}
    assert "CHANGED" in table(changed | {"summary": found})
    assert "CHANGED" not in table(record)


def test_who_left_was_never_there(done: Path, store: Path, fit: Fit, tmp_path: Path) -> None:
    never = copied(store, tmp_path / "never", [])
    assert fit(never, "[digit0, digit1]") == 0
    assert tree(done / "compartments") == tree(never / "compartments")
    assert main(["verify-forgotten", "--store", str(done), "--source", "digit2"]) == 0
    held = {name for name, data in tree(done).items() if b"digit2" in data or "digit2" in name}
    assert held == {"ledger.jsonl", "runs/outputs.jsonl"}


def test_the_record_and_its_picture_are_out_of_reach(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [done.parent / "record.json", done.parent / "record.png"]
    for source in ORDER:
        assert set(expected) <= set(outputs_of(done / "runs", source))
    assert main(["forget", "--store", str(done), "--source", "digit1", "--dry-run"]) == 0
    assert f"{expected[0]}: made with it, and not removed" in capsys.readouterr().out


def test_a_source_knows_of_no_other(done: Path) -> None:
    config = yaml.safe_load((done / "runs" / "sources" / "digit1" / "config.yaml").read_text())
    assert config["data"]["sources"] == ["digit1"]
    assert not {"order", "forget_at", "json"} & set(config)


def test_tensorboard_shows_those_who_are_there(done: Path, record: dict[str, Any]) -> None:
    events = EventAccumulator(str(done / "runs" / "continual"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    shown = {step.step: step.value for step in events.Scalars("heldout_error/digit0")}
    assert shown == pytest.approx({3: record["rows"][2]["heldout_error"]["digit0"], 4: shown[4]})
    assert [step.step for step in events.Scalars("forgetting/average_forgetting_heldout_error")] == [4]
    assert [step.step for step in events.Scalars("composed/kid@8_effnet-lite0")] == [3, 4]
    assert events.Scalars("forgetting/backward_transfer_own_error")[0].value == 0
    figures = {"forgetting/matrix", "forgetting/competition", "forgetting/accuracy"}
    assert set(events.Tags()["images"]) == figures
    assert "forgetting/compartments/text_summary" in events.Tags()["tensors"]


def test_cut_after_every_event_it_ends_the_same(
    workplace: Path, store: Path, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, path, measured = copied(store, tmp_path / "mine", []), tmp_path / "record.json", continual_command.measured
    begun: list[str] = []
    quiet = ("--trainer.logger", "false")

    def cut_once(event: Any, *rest: Any) -> dict[str, Any]:
        begun.append(event.name)
        if begun.count(event.name) == 1:
            raise KeyboardInterrupt
        return measured(event, *rest)

    monkeypatch.setattr(continual_command, "measured", cut_once)
    for _ in EVENTS:
        assert run(workplace, mine, path, *quiet) == 130
    assert run(workplace, mine, path, *quiet) == 0
    assert begun == [name for name in EVENTS for _ in range(2)], "no row was measured twice"
    differing = {"store": "", "configuration": ""}
    assert read(path) | differing == record | differing
    before = path.read_bytes()
    assert run(workplace, mine, path, *quiet) == 0
    assert path.read_bytes() == before
    assert len(begun) == 2 * len(EVENTS)


def test_the_terminal_shows_the_table(
    workplace: Path, done: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workplace, done, done.parent / "record.json") == 0
    out = capsys.readouterr().out
    assert table(record) in out
    first = [line for line in out.splitlines() if line.startswith("+ digit2")][-1]
    assert first.split()[2] == f"{record['rows'][0]['heldout_error']['digit2']:.5f}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--order", "[digit0, digit0]", "--forget-at", "[]"), "source 'digit0' is in --order 2 times"),
        (("--forget-at", "[1:digit1]"), "'digit1' is not there then"),
        (("--order", "[digit0, digt1]", "--forget-at", "[]"), "unknown source 'digt1'.*did you mean 'digit1'"),
        (("--data.sources", "[digit0]"), "--order says which sources arrive"),
        (("--trainer.devices", "2", "--trainer.accelerator", "cpu"), "continual runs in one process"),
        (("--json", "STORE/record.json"), "lies in the store"),
        (("--json", "nowhere/record.json"), "is no place for a file"),
        (("--data.root", "NOTHING"), "none of digit2 has a held-out image, so nothing could be measured"),
        (("--seed", "4294967296"), "seed is 4294967296; expected 0 to 4294967295"),
        (("--json", "record.png"), "--json record.png is where the picture of the record goes"),
    ],
)
def test_bad_input(
    options: tuple[str, ...],
    said: str,
    workplace: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = copied(store, tmp_path / "mine", [])
    before = tree(mine)
    if "NOTHING" in options:
        fractions = ["--public-fraction", "0.4", "--heldout-fraction", "0", "--shards-per-source", "2"]
        assert main(["shards", "--from", "digits", *fractions, "--out", str(tmp_path / "NOTHING")]) == 0
        options = (*options, "--data.heldout_fraction", "0")
    given = [option.replace("STORE", str(mine)).replace("NOTHING", str(tmp_path / "NOTHING")) for option in options]
    assert run(workplace, mine, tmp_path / "record.json", *given) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert tree(mine) == before


def test_another_experiment_is_not_gone_on_with(
    workplace: Path, done: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, path = Path(shutil.copytree(done, tmp_path / "mine")), tmp_path / "record.json"

    def refused(said: str, *options: str) -> None:
        before = tree(mine)
        assert run(workplace, mine, path, *options) == 2
        error = capsys.readouterr().err
        assert said in error, error
        assert tree(mine) == before

    refused("holds digit0, digit1, which this experiment has not brought in")
    path.write_text(json.dumps(read(done.parent / "record.json") | {"store": str(mine)}))
    refused("holds another experiment, whose configuration.seed is 0, and not 1", "--seed", "1")
    refused("holds another experiment, whose configuration.model.clusters is ", "--model.clusters", "3")
    shutil.rmtree(mine / "compartments" / "digit1")
    refused("lacks digit1, which the experiment brought in")
    shutil.copytree(store / "compartments" / "digit0", mine / "compartments" / "digit1")
    refused("row 4 was measured on another compartment of 'digit1'")
    path.write_text("[]")
    refused("is there and no record of an experiment")
