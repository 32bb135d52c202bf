"""Exact resume. Oracle: the bytes of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.store import Store
from cdm_lightning.training import CHECKPOINT, steps_done
from tests.conftest import Fit
from tests.test_callbacks import events

EVERY_3 = ("--trainer.enable_checkpointing", "true", "--checkpoint_every", "3")
STEPS = 14


def prompt(kind: str, optimizer: str = "adamw") -> tuple[str, ...]:
    return ("--model.compartment", kind, "--model.optimizer", optimizer, "--trainer.max_steps", str(STEPS), *EVERY_3)


def backbone(store: Path) -> bytes:
    return (store / "backbone.safetensors").read_bytes()


def compartment(store: Path, source: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "compartments" / source).iterdir()}


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let training end at the beginning of a step, before that step changes anything; return the steps begun."""
    original, begun = CompartmentalizedDiffusion.training_step, []

    def killed(module: CompartmentalizedDiffusion, batch: dict[str, object], batch_idx: int) -> dict[str, torch.Tensor]:
        if module.global_step == step:
            raise Killed
        begun.append(module.global_step)
        return original(module, batch, batch_idx)

    monkeypatch.setattr(CompartmentalizedDiffusion, "training_step", killed)
    return begun


def only_backbone(store: Path, place: Path) -> Path:
    place.mkdir()
    for name in ("store.json", "backbone.safetensors"):
        shutil.copy(store / name, place / name)
    return place


@pytest.mark.parametrize(
    ("kind", "optimizer", "step"),
    [
        *(("tokens", "adamw", step) for step in (2, 3, 13)),
        *(("lora", "adamw", 7), ("head", "adamw", 5), ("full", "adamw", 10), ("full", "muon", 11)),
    ],
)
def test_a_prompt_goes_on_mid_epoch_and_ends_in_the_same_bytes(
    kind: str, optimizer: str, step: int, store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (only_backbone(store, tmp_path / name) for name in ("undisturbed", "disturbed"))
    assert fit(undisturbed, "[digit3]", *prompt(kind, optimizer)) == 0
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(Killed):
            fit(disturbed, "[digit3]", *prompt(kind, optimizer))
    checkpoint = disturbed / "runs" / "sources" / "digit3" / CHECKPOINT
    assert checkpoint.exists() == (step >= 3)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert {name.split(".")[0] for name in state} == {"prompts", "ema"}, "the frozen backbone is not in it"
    begun = kill_at(-1, monkeypatch)
    assert fit(disturbed, "[digit3]", *prompt(kind, optimizer)) == 0
    assert begun == list(range(step // 3 * 3, STEPS)), "it goes on from the newest checkpoint"
    assert compartment(disturbed, "digit3") == compartment(undisturbed, "digit3")
    assert not checkpoint.exists(), "what is stored needs no checkpoint"


def test_the_backbone_goes_on_with_any_number_of_workers(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(20, patch)
        with pytest.raises(Killed):
            fit(tmp_path / "disturbed", "[]", *EVERY_3)
    begun = kill_at(-1, monkeypatch)
    assert fit(tmp_path / "disturbed", "[]", *EVERY_3, "--data.num_workers", "2") == 0
    assert begun == list(range(18, 40))
    assert backbone(tmp_path / "disturbed") == backbone(store)


def test_a_checkpoint_of_other_inputs_is_not_used(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (only_backbone(store, tmp_path / name) for name in ("undisturbed", "disturbed"))
    other = (*prompt("tokens"), "--model.prompt_learning_rate", "1e-2")
    assert fit(undisturbed, "[digit3]", *other) == 0
    with monkeypatch.context() as patch:
        kill_at(10, patch)
        with pytest.raises(Killed):
            fit(disturbed, "[digit3]", *prompt("tokens"))
    begun = kill_at(-1, monkeypatch)
    assert fit(disturbed, "[digit3]", *other) == 0
    assert begun == list(range(STEPS))
    assert compartment(disturbed, "digit3") == compartment(undisturbed, "digit3")


@pytest.mark.parametrize("contents", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_not_used(
    contents: bytes | None, store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (only_backbone(store, tmp_path / name) for name in ("undisturbed", "disturbed"))
    assert fit(undisturbed, "[digit3]", *prompt("tokens")) == 0
    with monkeypatch.context() as patch:
        kill_at(10, patch)
        with pytest.raises(Killed):
            fit(disturbed, "[digit3]", *prompt("tokens"))
    checkpoint = disturbed / "runs" / "sources" / "digit3" / CHECKPOINT
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] if contents is None else contents)
    assert fit(disturbed, "[digit3]", *prompt("tokens")) == 0
    assert compartment(disturbed, "digit3") == compartment(undisturbed, "digit3")


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"inputs_sha256": "x", "global_step": 3, "payload": Payload()}, tmp_path / CHECKPOINT)
    assert steps_done(tmp_path / CHECKPOINT, "x") == 0
    assert not (tmp_path / "ran").exists()


KILLER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from cdm_lightning.cli import main
from cdm_lightning.module import CompartmentalizedDiffusion
original = CompartmentalizedDiffusion.optimizer_step
def killed(module, *arguments, **named):
    original(module, *arguments, **named)
    if module.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
CompartmentalizedDiffusion.optimizer_step = killed
main(sys.argv[2:])
"""


def test_kill_9_in_the_middle_of_a_step(store: Path, fit: Fit, workplace: Path, tmp_path: Path) -> None:
    undisturbed, disturbed = (only_backbone(store, tmp_path / name) for name in ("undisturbed", "disturbed"))
    assert fit(undisturbed, "[digit3]", *prompt("lora")) == 0
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards")]
    command = ["fit", *where, "--store", str(disturbed), "--data.sources", "[digit3]", *prompt("lora")]
    process = subprocess.run(
        [sys.executable, "-c", KILLER, "8", *command],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert (disturbed / "runs" / "sources" / "digit3" / CHECKPOINT).exists()
    assert fit(disturbed, "[digit3]", *prompt("lora")) == 0
    assert compartment(disturbed, "digit3") == compartment(undisturbed, "digit3")


SIGNALLED = """
import os, signal, sys
from cdm_lightning.cli import main
from cdm_lightning.module import CompartmentalizedDiffusion
original = CompartmentalizedDiffusion.training_step
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have turned it off

def told(module, batch, batch_idx):
    if module.global_step == 7:
        os.kill(os.getpid(), int(sys.argv[1]))
    return original(module, batch, batch_idx)

CompartmentalizedDiffusion.training_step = told
sys.exit(main(sys.argv[2:]))
"""


VALIDATING = """
import os, signal, sys
from callbacks import Attribution
from cdm_lightning.cli import main

def told(callback, trainer, module):
    os.kill(os.getpid(), signal.SIGTERM)

Attribution.on_validation_end = told
sys.exit(main(sys.argv[1:]))
"""


def test_a_validation_ends_at_sigterm_and_is_made_up_for(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path
) -> None:
    mine = only_backbone(store, tmp_path / "mine")
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards"), "--store", str(mine)]
    options = ["--data.sources", "[digit3]", "--trainer.logger", "true"]
    command = [sys.executable, "-c", VALIDATING, "fit", *where, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert Store.open(mine).sources() == ["digit3"]
    composed = mine / "runs" / "composed"
    assert "attribution/accuracy" not in events(composed).Tags()["scalars"]
    for _ in range(2):  # the second time nothing is left to do
        assert fit(mine, "[digit3]", "--trainer.logger", "true") == 0
        assert len(events(composed).Scalars("attribution/accuracy")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_told_and_the_same_command_goes_on(
    number: signal.Signals, store: Path, fit: Fit, workplace: Path, tmp_path: Path
) -> None:
    mine = only_backbone(store, tmp_path / "mine")
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards"), "--store", str(mine)]
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), "fit", *where, "--data.sources", "[digit3]"]
    ended = subprocess.run([*command, *prompt("tokens")], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 128 + number
    assert ended.stderr.splitlines()[-1:] == ["cdm_lightning: interrupted; run the same command again to go on"]
    assert "Traceback" not in ended.stderr
    undisturbed = only_backbone(store, tmp_path / "undisturbed")
    assert fit(undisturbed, "[digit3]", *prompt("tokens")) == 0
    assert fit(mine, "[digit3]", *prompt("tokens")) == 0
    assert compartment(mine, "digit3") == compartment(undisturbed, "digit3")
