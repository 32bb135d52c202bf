"""The training of one phase by a Trainer of its own, which goes on where an interrupted run of the same phase stood."""

import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from cdm_lightning.backbone import tensors_sha256
from cdm_lightning.errors import BadInput, Interrupted
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import not_finite
from cdm_lightning.ranks import is_rank_zero
from cdm_lightning.recipe import Recipe
from cdm_lightning.store import CONFIG, UNFINISHED
from cdm_lightning.torch_files import read_torch_file

CHECKPOINT = "last.ckpt"


def train(
    recipe: Recipe,
    module: CompartmentalizedDiffusion,
    data: Any,
    folder: Path,
    steps: int,
    inputs: Mapping[str, Any],
    batches: Callable[[int], DataLoader[Any]] | None = None,
) -> None:
    """Train one phase to its end; the frozen backbone is left alone.

    Args:
        recipe: makes the Trainer.
        module: prepared by `begin_backbone` or `begin_source`.
        data: where the phase's source is opened.
        folder: of this phase's logs and checkpoint.
        steps: training steps in all.
        inputs: all that decides the result; a checkpoint of other inputs is not used.
        batches: what is trained on after so many steps, if it is not the stream of the phase's source.
    """
    module.inputs_sha256 = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    checkpoint = folder / CHECKPOINT
    done = steps_done(checkpoint, module.inputs_sha256)
    if is_rank_zero():
        folder.mkdir(parents=True, exist_ok=True)
        if not done:
            _clear(folder)
        recipe.save_config(module.phase, folder / UNFINISHED)
    given: dict[str, Any] = {"datamodule": data}
    if batches is None:
        data.open(module.phase.source, done)
    else:
        given = {"train_dataloaders": batches(done), "val_dataloaders": []}
    before = tensors_sha256(module.backbone)
    trainer = recipe.trainer(module.phase, folder, steps)
    with signals():
        trainer.fit(module, **given, ckpt_path=checkpoint if done else None, weights_only=True)
    if done == steps:  # nothing was left to do, so Lightning has not called it
        module.on_train_end()
    check_finite(module)
    if trainer.global_step != steps:
        raise RuntimeError(f"{module.phase.title}: training ended at step {trainer.global_step} of {steps}")
    if module.phase.kind == "source" and tensors_sha256(module.backbone) != before:
        raise RuntimeError(f"{module.phase.title}: training changed the frozen backbone")
    if is_rank_zero():
        (folder / UNFINISHED).unlink()


def check_finite(module: CompartmentalizedDiffusion) -> None:
    """Raise BadInput if a parameter, or its running average, is not finite any more."""
    if name := not_finite(module.state_dict()):
        key = "model.learning_rate" if module.phase.kind == "backbone" else "model.prompt_learning_rate"
        raise BadInput(
            f"{module.phase.title}: the training diverged, and nothing of it is stored ({name} is not finite): choose "
            f"a lower {key}"
        )


@contextmanager
def signals() -> Iterator[None]:
    """Raise Interrupted where Lightning, told by a signal to end, would end the process: quietly, or with code 0.

    At SIGTERM it raises a SystemExit without a code; at Ctrl-C one of code 1.
    """
    try:
        yield
    except SystemExit as end:
        raise Interrupted(signal.SIGTERM if end.code is None else signal.SIGINT) from end


@contextmanager
def ending_at_sigterm() -> Iterator[None]:
    """Raise Interrupted at SIGTERM, of which Lightning takes no more than a note while it validates."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clear(folder: Path) -> None:
    """Remove what an earlier training has left, but for the configuration of what is stored, which may stay."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != CONFIG:
            path.unlink()


def steps_done(checkpoint: Path, inputs_sha256: str) -> int:
    """Return the steps that a checkpoint of the same inputs has behind it; 0 if there is no such checkpoint."""
    try:
        contents = read_torch_file(str(checkpoint))
    except ValueError:
        return 0
    same = isinstance(contents, dict) and contents.get("inputs_sha256") == inputs_sha256
    return int(contents["global_step"]) if same else 0


def discard_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a phase whose result is stored."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
