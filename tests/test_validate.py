"""`validate`. Oracles: the scalars that a fit logs, a store that holds only the chosen sources, text by hand."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdm_lightning.cli import main
from cdm_lightning.extractors import FeatureExtractor, open_extractor
from cdm_lightning.fit_record import FitRecord, fit_record
from cdm_lightning.store import Store
from cdm_lightning.validate_command import table
from datamodules import ShardDataModule
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor
from tests.made_shards import content, noise, write

N, STEPS = 8, 5
SAMPLED = ("--n", str(N), "--steps", str(STEPS))
OPEN_EXTRACTOR = "cdm_lightning.validate_command.open_extractor"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Put an extractor of few features in the place of EfficientNet-Lite0: Frechet distances take long otherwise."""

    def opened(name: str, weights: str | None) -> FeatureExtractor:
        return DummyExtractor(name) if name == "effnet-lite0" else open_extractor("inception", weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OPEN_EXTRACTOR, opened)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validate")


@pytest.fixture(scope="module")
def fitted(place: Path, store: Path, fit: Fit) -> Path:
    """Return a store whose last validation logged the scores of three digits; read it, do not change it."""
    path = place / "fitted"
    shutil.copytree(store / "runs" / "backbone", path / "runs" / "backbone")
    for name in ("store.json", "backbone.safetensors"):
        shutil.copy(store / name, path / name)
    measured = ("--metrics.extractor", "effnet-lite0", "--metrics.n", str(N), "--sampler.steps", str(STEPS))
    assert fit(path, "[digit0, digit1, digit2]", "--trainer.logger", "true", *measured) == 0
    return path


@pytest.fixture(scope="module")
def whole(fitted: Path, place: Path) -> dict[str, Any]:
    """Return the report on all of its sources."""
    return run(fitted, place / "whole.json", "--sources", "all", *SAMPLED)


def run(store: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main(["validate", "--store", str(store), "--json", str(out), *options]) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def copied(store: Path, to: Path, sources: list[str], runs: bool = True) -> Path:
    """Copy a store with the compartments of some sources and, if wanted, the record of its fit."""
    to.mkdir(parents=True)
    for name in ("store.json", "backbone.safetensors"):
        shutil.copy(store / name, to / name)
    for source in sources:
        shutil.copytree(store / "compartments" / source, to / "compartments" / source)
    if runs:
        shutil.copytree(store / "runs" / "backbone", to / "runs" / "backbone")
    return to


def without_store(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "store"}


def test_numbers_are_those_that_the_fit_logged(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPEN_EXTRACTOR, open_extractor)
    found = run(fitted, tmp_path / "r.json", "--sources", "all", *SAMPLED)
    events = EventAccumulator(str(fitted / "runs" / "composed"), size_guidance={"scalars": 0})
    events.Reload()
    scores, attribution = found["scores"], found["attribution"]
    unlogged = ("matrix", "by_sigma", "accuracy_by_source")
    logged = {"composed": scores["composed"], "newest_source": scores["digit2"]}
    logged["attribution"] = {name: value for name, value in attribution.items() if name not in unlogged}
    assert len(logged["composed"]) == len(logged["newest_source"]) == 5
    assert len(logged["attribution"]) == 6
    for group, values in logged.items():
        for name, value in values.items():
            last = events.Scalars(f"{group}/{name}")[-1]
            assert last.step == 3
            assert np.float32(last.value) == np.float32(value), (group, name)
    assert json.loads((fitted / "runs" / "composed" / "forgetting.json").read_text())[-1] == found["heldout_error"]


def test_the_report_says_how_to_repeat_it(fitted: Path, workplace: Path, whole: dict[str, Any]) -> None:
    assert {name: whole[name] for name in ("sources", "n", "steps", "sampler", "strategy", "seed", "extractor")} == {
        "sources": ["digit0", "digit1", "digit2"],
        "n": N,
        "steps": STEPS,
        "sampler": "heun",
        "strategy": "routed",
        "seed": 0,
        "extractor": "effnet-lite0",
    }
    assert (whole["split"], whole["root"], whole["sigma_switch"]) == ("heldout", str(workplace / "shards"), 3.0)
    data = ShardDataModule(str(workplace / "shards"))
    assert whole["reference_images"] == {source: len(data.images(source, "heldout")[0]) for source in whole["sources"]}
    assert list(whole["versions"]) == ["cdm_lightning", "python", "timm", "torch", "torch-fidelity"]
    assert whole["backbone_sha256"] == Store.open(fitted).info.backbone_sha256
    assert set(whole["compartments_sha256"]) == set(whole["sources"])
    assert 0 < whole["network_evaluations_per_image"] < 2 * STEPS
    assert whole["threads"] == 1
    assert whole["remarks"] == []
    matrix = np.array(whole["attribution"]["matrix"])
    assert matrix.shape == (3, 3)
    assert matrix.sum(1) == pytest.approx(1, abs=1e-5)
    assert [level["sigma"] for level in whole["attribution"]["by_sigma"]] == [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 20]


def test_stdout_is_the_table_of_the_json(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(fitted, tmp_path / "r.json", "--sources", "[digit1, digit0]", "--extractor", "none")
    assert capsys.readouterr().out == table(report) + "\n"


def test_a_subset_is_a_store_of_this_subset(fitted: Path, tmp_path: Path) -> None:
    subset = copied(fitted, tmp_path / "subset", ["digit0", "digit2"])
    chosen = run(fitted, tmp_path / "chosen.json", "--sources", "[digit0, digit2]", *SAMPLED)
    assert without_store(chosen) == without_store(run(subset, tmp_path / "all.json", "--sources", "all", *SAMPLED))


def test_one_source_is_the_composed_model(fitted: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    report = run(fitted, tmp_path / "r.json", "--sources", "digit1", *SAMPLED)
    assert report["scores"] == dict.fromkeys(("composed", "digit1"), whole["scores"]["digit1"])
    assert report["attribution"]["matrix"] == [[1.0]]
    assert (report["attribution"]["accuracy"], report["attribution"]["informative"]) == (1.0, False)


def test_without_an_extractor_nothing_is_sampled(fitted: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    report = run(fitted, tmp_path / "r.json", "--sources", "all", "--extractor", "none")
    assert (report["scores"], report["network_evaluations_per_image"]) == ({}, None)
    for name in ("attribution", "heldout_error", "reference_images"):
        assert report[name] == whole[name]


def test_the_store_gets_nothing_but_features_and_a_note_of_the_report(
    fitted: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(fitted, tmp_path / "store", ["digit0", "digit1"])
    before = content(store)
    report = run(store, tmp_path / "r.json", "--sources", "[digit0]", *SAMPLED)
    assert report["scores"]["digit0"] == whole["scores"]["digit0"]
    after = content(store)
    assert {name: after[name] for name in before} == before
    new = {name.rpartition("-")[0] or name for name in set(after) - set(before)}
    assert new == {"runs/sources/digit0/effnet-lite0", "runs/outputs.jsonl", "runs/outputs.jsonl.lock"}
    assert str(tmp_path / "r.json") in after["runs/outputs.jsonl"].decode()


def test_a_store_that_cannot_be_written_is_measured_all_the_same(
    fitted: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied(fitted, tmp_path / "store", ["digit0"])
    refuse_writing(monkeypatch, errno.EROFS)
    report = run(store, tmp_path / "r.json", "--sources", "all", *SAMPLED)
    assert report["scores"]["digit0"] == whole["scores"]["digit0"]
    assert not list(store.rglob("effnet*"))


def test_a_full_disk_is_told(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copied(fitted, tmp_path / "store", ["digit0"])
    refuse_writing(monkeypatch, errno.ENOSPC)
    assert main(["validate", "--store", str(store), "--sources", "all", *SAMPLED]) == 2
    assert "the disk is full" in capsys.readouterr().err


def refuse_writing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("cdm_lightning.reference.write_tensors", refuse)


@pytest.mark.parametrize("left", [0, 1])
def test_a_source_with_too_few_images_leaves_no_wrong_number(
    left: int, fitted: Path, workplace: Path, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ShardDataModule(str(workplace / "shards")).images("digit1", "heldout")[0]
    (tmp_path / "keys").write_text("\n".join(keys[left:]))
    options = ("--sources", "all", *SAMPLED, "--exclude", str(tmp_path / "keys"))
    report = run(fitted, tmp_path / "r.json", *options)
    empty = {"composed": None, "digit1": None}
    assert report["scores"] == {"digit0": whole["scores"]["digit0"], "digit2": whole["scores"]["digit2"], **empty}
    assert report["network_evaluations_per_image"] is None
    assert report["reference_images"]["digit1"] == left
    assert (report["attribution"] is None) == (report["heldout_error"]["digit1"] is None) == (left == 0)
    assert report["heldout_error"]["digit0"] == whole["heldout_error"]["digit0"]
    (remark,) = report["remarks"]
    assert remark.startswith(f"source 'digit1' has {left or 'no'} held-out image")
    assert remark in table(report).splitlines()
    assert capsys.readouterr().out == table(report) + "\n"


def test_a_source_without_shards_is_one_without_images(
    fitted: Path, workplace: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(workplace / "shards", tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "digit1")
    options = ("--sources", "all", "--extractor", "none", "--root", str(tmp_path / "root"))
    report = run(fitted, tmp_path / "r.json", *options)
    assert report["reference_images"] == whole["reference_images"] | {"digit1": 0}
    assert report["heldout_error"] == whole["heldout_error"] | {"digit1": None}
    assert report["attribution"] is None


def test_the_newest_record_says_where_and_how(fitted: Path, workplace: Path, tmp_path: Path) -> None:
    store = copied(fitted, tmp_path / "store", ["digit0", "digit1"])
    shutil.copytree(workplace / "shards", tmp_path / "moved")
    (tmp_path / "keys").write_text(ShardDataModule(str(workplace / "shards")).images("digit1", "heldout")[0][0])
    record = {
        "data": {"root": str(tmp_path / "moved"), "exclude": str(tmp_path / "keys")},
        "model": {"strategy": "assign"},
    }
    (store / "runs" / "composed").mkdir()
    (store / "runs" / "composed" / "config.yaml").write_text(yaml.safe_dump(record))
    options = ("--sources", "all", "--extractor", "none")
    report = run(store, tmp_path / "r.json", *options)
    assert (report["root"], report["strategy"]) == (record["data"]["root"], "assign")
    assert report["exclude"] == record["data"]["exclude"]
    other = run(store, tmp_path / "r.json", *options, "--root", str(workplace / "shards"), "--strategy", "posterior")
    assert (other["root"], other["exclude"], other["strategy"]) == (str(workplace / "shards"), None, "posterior")
    assert other["reference_images"]["digit1"] == report["reference_images"]["digit1"] + 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[data]",
        b"data: [",
        b"\xff\xfe",
        b"data: {root: 5}",
        b"data: root",
        b"data: {root: ''}",
        b"when: 2001-99-99",
        b"data: {root: !!python/object/apply:os.getcwd []}",
        b"[" * 500,
    ],
)
def test_what_cannot_be_read_is_not_recorded(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "composed" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    assert fit_record(Store(tmp_path)) == FitRecord()
    (tmp_path / "runs" / "backbone").mkdir()
    (tmp_path / "runs" / "backbone" / "config.yaml").write_text("{data: {root: d, exclude: 3}, model: {strategy: x}}")
    assert fit_record(Store(tmp_path)) == FitRecord("d")


def test_no_place_of_images_asks_for_root(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copied(fitted, tmp_path / "store", ["digit0"], runs=False)
    assert main(["validate", "--store", str(store), "--sources", "all"]) == 2
    assert "does not say where the held-out images are: give --root DIR" in capsys.readouterr().err
    (store / "runs" / "backbone").mkdir(parents=True)
    (store / "runs" / "backbone" / "config.yaml").write_text("data: {root: data/gone}")
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "--store", str(store), "--sources", "all"]) == 2
    said = capsys.readouterr().err
    assert f"'data/gone', is no folder, seen from the working folder {tmp_path}: give --root DIR" in said
    assert main(["validate", "--store", str(store), "--sources", "all", "--root", str(tmp_path)]) == 2
    assert f"'{tmp_path}' has no held-out images of digit0: give --root DIR" in capsys.readouterr().err


def test_images_of_another_size_are_refused(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("digit0", "other"):
        (tmp_path / "images" / source).mkdir(parents=True)
        for k in range(8):
            noise(k + len(source)).save(tmp_path / "images" / source / f"{k}.png")
    write(tmp_path / "root", tmp_path / "images")
    options = ("--sources", "[digit0]", "--root", str(tmp_path / "root"))
    assert main(["validate", "--store", str(fitted), *options]) == 2
    assert "has images of size 6 with 3 channels, but the store's are of size 8 with 1" in capsys.readouterr().err


def test_held_out_images_of_another_split_are_told(
    fitted: Path, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store was trained on most of what is held out there."""
    options = ("--sources", "[digit0]", "--n", "4", "--steps", "2", "--extractor", "none")
    assert main(["validate", "--store", str(fitted), *options]) == 0
    assert "was fitted on other images" not in caplog.text
    root = tmp_path / "root"
    written = ("--from", "digits", "--out", str(root), "--public-fraction", "0.4", "--heldout-fraction", "0.6")
    assert main(["shards", *written]) == 0
    assert main(["validate", "--store", str(fitted), *options, "--root", str(root)]) == 0
    assert f"source 'digit0' was fitted on other images than {root} has" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sources", "[digit7]"), "unknown source 'digit7'"),
        (("--sources", "all", "--n", "1"), "--n is 1; expected at least 2"),
        (("--sources", "all", "--steps", "1"), "--steps is 1; expected at least 2"),
        (("--sources", "all", "--seed", "-1"), "--seed is -1; expected 0 to 4294967295"),
        (
            ("--sources", "all", "--extractor", "inception", "--inception", "none.pth"),
            "none.pth: there is no such file",
        ),
        (("--sources", "all", "--json", "none/r.json"), "--json none/r.json is no place for a file"),
    ],
)
def test_bad_input(options: tuple[str, ...], said: str, fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--store", str(fitted), *options]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""


def test_the_table_by_hand() -> None:
    def scores(kid: float) -> dict[str, float]:
        values = {"fid": 7.25, "kid": kid, "kid_deviation": 0.001, "precision": 0.5, "recall": 1.0}
        return {f"{name}@64_inception": value for name, value in values.items()}

    report = {
        "sources": ["cat", "dog"],
        "reference_images": {"cat": 10, "dog": 1},
        "scores": {"composed": None, "cat": scores(-0.25), "dog": None},
        "heldout_error": {"cat": 0.125, "dog": None},
        "heldout_error_sigma": 0.3,
        "attribution": {
            "accuracy": 0.75,
            "mean_credit": 0.6,
            "cross_entropy": 0.5,
            "calibration_error": 0.1,
            "informative": True,
        },
        "remarks": ["dog is new"],
        **{"n": 64, "extractor": "inception", "sampler": "heun", "steps": 9, "strategy": "routed", "seed": 4},
        "root": "data/pets",
    }
    assert table(report).split("\n") == [
        "model     held-out  KID@64            FID@64  precision  recall  composed error at 0.3",
        "composed  11        -                 -       -          -       -",
        "cat       10        -0.2500 ± 0.0010  7.250   0.500      1.000   0.12500",
        "dog       1         -                 -       -          -       -",
        "",
        "attribution: accuracy 75.0%, credit of the true source 0.600, cross-entropy 0.500 nats, calibration error "
        "0.100, informative",
        "dog is new",
        "n 64, heun 9 steps, routed, seed 4, extractor inception, held-out images of data/pets",
    ]
