"""Options of the Trainer that would couple the sources, or store what was not trained: refused, with the reason."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from cdm_lightning.errors import BadInput

REFUSED = {
    "max_time": "a phase must end after a fixed number of steps, whatever the others took; use max_steps",
    "max_epochs": "the stream of a source has no epochs; use max_steps",
    "fast_dev_run": "it would store a compartment that was not trained; use --config debug.yaml",
    "overfit_batches": "it would leave most of the source out",
    "limit_train_batches": "it would leave most of the source out",
    "accumulate_grad_batches": "noise is drawn per step; use a larger data.batch_size",
}
ALLOWED = {"max_epochs": (None, -1), "limit_train_batches": (None, 1.0), "accumulate_grad_batches": (1,)}
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    EarlyStopping: "a metric of what else is in the store would decide how long a source is trained; use max_steps",
    Timer: "a phase must end after a fixed number of steps, whatever the others took; use max_steps",
    WeightAveraging: "it drifts the frozen weights; what is trained is averaged anyway, see model.ema_decay",
    StochasticWeightAveraging: "it averages frozen weights too; see model.ema_decay",
    GradientAccumulationScheduler: REFUSED["accumulate_grad_batches"],
    ModelPruning: "what is pruned is not noted, so another fit would be taken for the same",
    BaseFinetuning: "it freezes and thaws layers; one part is trained at a time, and the rest is frozen anyway",
    BatchSizeFinder: "the batch size would depend on the machine; set data.batch_size",
    LearningRateFinder: "the rate would be found by trial; set model.learning_rate or model.prompt_learning_rate",
}


def check_trainer(trainer: Namespace, callbacks: Sequence[Callback], outside: Sequence[Path], store: Path) -> None:
    """Raise BadInput that names the first option which is refused, with the reason.

    Args:
        trainer: the options.
        callbacks: of the caller's.
        outside: folders into which loggers of the caller's write.
        store: the folder of the store.
    """
    for key, reason in REFUSED.items():
        if trainer[key] not in ALLOWED.get(key, (None, False, 0)):
            raise BadInput(f"trainer.{key} is refused: {reason}")
    check_precision(trainer.precision)
    for callback in callbacks:
        check_callback(callback)
    for place in outside:
        if place.resolve().is_relative_to(store.resolve()):
            raise BadInput(
                f"trainer.logger: {place} lies in the store, where it would keep what it was told of a source that is "
                "forgotten; name a folder elsewhere, which `forget` then lists"
            )


def accelerator_of(asked: str | Accelerator) -> str | Accelerator:
    """Return what `auto` stands for here: CUDA where there is a device, else the CPU; what else is asked as it is.

    Raises:
        BadInput: an accelerator without float64, in which weights of sources are computed, is asked for.
    """
    cuda, apple = CUDAAccelerator.is_available(), asked == "mps" or isinstance(asked, MPSAccelerator)
    if apple or (asked == "gpu" and not cuda and MPSAccelerator.is_available()):
        raise BadInput(
            "trainer.accelerator: Apple's GPUs have no float64, in which the weights of sources are computed; use cpu"
        )
    return ("cuda" if cuda else "cpu") if asked == "auto" else asked


def check_precision(precision: str | int | None) -> None:
    """Raise BadInput unless training is in single precision, or bfloat16 with weights in single precision."""
    if str(precision) in ("16-mixed", "16-true", "16"):
        raise BadInput("trainer.precision 16 is refused: its loss scale is found by trial; use 32-true or bf16-mixed")
    if precision is not None and str(precision) not in PRECISIONS:
        raise BadInput(f"trainer.precision is {precision}; expected 32-true or bf16-mixed: weights stay in float32")


def precision_of(asked: str | int | None) -> str | None:
    """Return a precision by one of its names; None is the default, single precision."""
    return "bf16-mixed" if str(asked) in ("bf16", "bf16-mixed") else None


def check_callback(callback: Callback) -> None:
    """Raise BadInput if this callback would make one source depend on another."""
    for kind, reason in REFUSED_CALLBACKS.items():
        if isinstance(callback, kind):
            raise BadInput(f"trainer.callbacks: {type(callback).__name__} is refused: {reason}")
    if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
        raise BadInput(
            f"trainer.callbacks: ModelCheckpoint with monitor '{callback.monitor}' is refused: the last weights are "
            "stored, since a metric of what else is in the store may not choose them; leave monitor out"
        )
    if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
        raise BadInput(
            f"trainer.callbacks: ModelCheckpoint with dirpath '{callback.dirpath}' is refused: what a source was "
            "trained to would stay there when it is forgotten; leave dirpath out, then it lies with the source's runs"
        )
