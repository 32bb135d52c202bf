"""Configurations that cannot be used: one clear sentence that names the file, exit code 2, nothing written."""

from pathlib import Path

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from cdm_lightning.cli import main
from cdm_lightning.errors import BadInput
from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.trainer_checks import accelerator_of, check_precision, precision_of

TAB = "model:\n\tguide: none\n"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"model: {guide: [\n", "is no YAML: expected the node content, but found"),
        (TAB.encode(), "that cannot start any token in line 2, column 1"),
        (b"- a\n- b\n", "must hold keys with values, such as `seed: 0`, but holds ['a', 'b']"),
        (b"just text\n", "must hold keys with values, such as `seed: 0`, but holds 'just text'"),
        (b"", "must hold keys with values, such as `seed: 0`, but holds None"),
        (b"\x00\x01\xff", "cannot be read ('utf-8' codec can't decode byte 0xff"),
        (b"data: {channels: 3}\nmodel: {rank: 3, rank: 4}\n", "is no YAML: 'rank' is there twice in line 2, column 8"),
        (b"seed: \x01\n", "is no YAML: unacceptable character #x0001"),
        (b"model: null\n", "has no value for the key 'model': give it keys of its own, or leave it out"),
        (b"model: !!python/object/apply:os.system [ls]\n", "is no YAML: could not determine a constructor for the tag"),
        (b"seed: 1\nmodel: {guide: 3}\n", 'Parser key "model.guide": Expected a one of'),
        (b"data: {num_workers: many}\n", 'Parser key "data.num_workers": Expected a int. Got value: many'),
        (
            b"model: {backbone: {class_path: os.system}}\n",
            "'os.system' is outside the allowed packages; if you trust it",
        ),
        (
            b"trainer: {callbacks: [{class_path: subprocess.Popen}]}\n",
            "'subprocess.Popen' is outside the allowed packages",
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_told_in_one_line(
    contents: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(contents)
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "mine.yaml", "--store", "store", "--data.root", "shards"])
    assert exit.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (
            "EarlyStopping, init_args: {monitor: loss}",
            "EarlyStopping is refused: a metric of what else is in the store",
        ),
        ("Timer, init_args: {duration: '00:00:01:00'}", "Timer is refused: a phase must end after a fixed number"),
        (
            "ModelCheckpoint, init_args: {monitor: fid}",
            "ModelCheckpoint with monitor 'fid' is refused: the last weights",
        ),
        ("EMAWeightAveraging", "EMAWeightAveraging is refused: it drifts the frozen weights"),
        ("StochasticWeightAveraging, init_args: {swa_lrs: 0.1}", "StochasticWeightAveraging is refused"),
        (
            "GradientAccumulationScheduler, init_args: {scheduling: {0: 4}}",
            "Scheduler is refused: noise is drawn per step",
        ),
        ("BackboneFinetuning", "BackboneFinetuning is refused: it freezes and thaws layers"),
        ("LearningRateFinder", "LearningRateFinder is refused: the rate would be found by trial"),
        ("BatchSizeFinder", "BatchSizeFinder is refused: the batch size would depend on the machine"),
        (
            "ModelCheckpoint, init_args: {dirpath: elsewhere}",
            "is refused: what a source was trained to would stay there when it is forgotten",
        ),
    ],
)
def test_callbacks_that_would_couple_sources_are_refused(
    callback: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"lightning.pytorch.callbacks.{callback}"
    (tmp_path / "mine.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {path}}}]}}\n")
    assert main(["fit", "--config", "mine.yaml", "--store", "store", "--data.root", "shards"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_log_inside_the_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "store/runs")
    assert main(["fit", *logger, "--store", "store", "--data.root", "shards"]) == 2
    assert "trainer.logger: store/runs lies in the store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", 16, "64-true", "bf16-true", "transformer-engine"])
def test_precisions_that_are_refused(precision: str | int) -> None:
    with pytest.raises(BadInput, match="trainer.precision .*32-true or bf16-mixed"):
        check_precision(precision)


@pytest.mark.parametrize(
    ("precision", "noted"),
    [(None, None), (32, None), ("32", None), ("32-true", None), ("bf16", "bf16-mixed"), ("bf16-mixed", "bf16-mixed")],
)
def test_precisions_that_are_taken_are_noted_by_one_name(precision: str | int | None, noted: str | None) -> None:
    check_precision(precision)
    assert precision_of(precision) == noted


@pytest.mark.parametrize(
    ("asked", "cuda", "found"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("gpu", True, "gpu")],
)
def test_what_auto_means(asked: str, cuda: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: cuda)
    assert accelerator_of(asked) == found


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_a_fit_runs_on_the_cpu_where_there_is_only_an_apple_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: False)
    parser = fit_parser()
    assert ConfiguredRecipe(parser, parser.parse_args([])).device == "cpu"
    for asked in ("mps", "gpu"):
        assert main(["fit", "--trainer.accelerator", asked, "--store", "store", "--data.root", "shards"]) == 2
        assert "trainer.accelerator: Apple's GPUs have no float64" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
