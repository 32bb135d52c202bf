"""The held-out images that a validation brings, by source."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cdm_lightning.images import spread
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.reference import HELDOUT_IMAGES


class HeldOut(Callback):
    """Keeps the images of one validation, for `on_validation_end`.

    Attributes:
        held_out: uint8 [n, channel, height, width] by source; a source without held-out images is not in it.
    """

    def __init__(self) -> None:
        self.held_out: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of the validation before."""
        self.held_out.clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *_: object
    ) -> None:
        """Keep images of one source, as many as are looked at."""
        if len(batch["image"]):
            self.held_out[batch["source"]] = spread(batch["image"], HELDOUT_IMAGES)


def steps_of(trainer: Trainer, module: CompartmentalizedDiffusion) -> int:
    """Return the step of a validation: how many sources are in the composed model; in training, the steps behind it."""
    return len(module.compartments) if module.phase.kind == "composed" else trainer.global_step
