"""Who is credited for held-out images whose source is known."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.figures import log_figure, matrix
from cdm_lightning.attribution import attribution_matrix, credits_of, cross_entropy, is_informative
from cdm_lightning.images import from_uint8
from cdm_lightning.module import CompartmentalizedDiffusion


class AttributionMatrix(Callback):
    """Logs the mean credit [true source, credited source] on held-out images, its accuracy and cross-entropy."""

    def __init__(self) -> None:
        self._credits: dict[str, Tensor] = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *_: object
    ) -> None:
        """Compute the credits of one source's held-out images."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        if len(batch["image"]):
            composed, floor = pl_module.composed(), pl_module.public.calibration.floor
            with torch.inference_mode():
                self._credits[batch["source"]] = credits_of(composed, from_uint8(batch["image"]), floor)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log matrix and scalars, if every source in the model had held-out images; the step is the number of them."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        sources = pl_module.composed().sources
        if not all(source in self._credits for source in sources):
            return
        weights = [self._credits[source] for source in sources]
        loss, values = cross_entropy(weights), attribution_matrix(weights)
        accuracy = sum(float((w.argmax(0) == i).sum()) for i, w in enumerate(weights)) / sum(
            w.shape[1] for w in weights
        )
        said = "informative" if is_informative(loss, len(sources)) else "not informative"
        title = f"mean credit, {said}: {loss:.2f} nats, accuracy {accuracy:.0%}"
        scalars = {"attribution/cross_entropy": loss, "attribution/accuracy": accuracy}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=len(sources))
        log_figure(trainer, "attribution", matrix(values, sources, title), len(sources))
