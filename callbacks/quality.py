"""How close the samples of the composed model, and of the newest source alone, are to held-out images."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.board import log_scalars
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.generation import Settings, batched, sample_batch
from cdm_lightning.images import to_uint8
from cdm_lightning.metrics import scores
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.reference import Reference, joined, source_reference

FEWEST = 2


class Quality(Callback):
    """Logs KID, Frechet distance (FID, if the extractor is Inception), precision and recall after every source.

    Args:
        extractor: makes the features that are compared.
        n: sampled images.
        references: folder where the features of each source's held-out images are kept.
        steps: sampler steps.
        batch_size: images sampled at a time.
    """

    def __init__(
        self, extractor: FeatureExtractor, n: int, references: Path, steps: int = 18, batch_size: int = 64
    ) -> None:
        self.extractor, self.n, self.references = extractor, n, references
        self.steps, self.batch_size = steps, batch_size
        self._held_out: dict[str, Reference] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the held-out images of the validation before."""
        self._held_out.clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *_: object
    ) -> None:
        """Take the features of one source's held-out images."""
        if len(batch["image"]) >= FEWEST:
            source = batch["source"]
            self._held_out[source] = source_reference(self.references, source, batch["image"], self.extractor)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the composed model's scores, and those of the newest source alone; the step is the number of sources."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed, newest = pl_module.composed(), pl_module.phase.source
        step = len(composed.sources)
        if all(source in self._held_out for source in composed.sources):
            log_scalars(trainer, "composed", self._scores(composed, composed.sources, pl_module), step)
        if newest in self._held_out:
            log_scalars(trainer, "newest_source", self._scores(composed.alone(newest), [newest], pl_module), step)

    def _scores(
        self, composed: ComposedDenoiser, sources: list[str], module: CompartmentalizedDiffusion
    ) -> dict[str, float]:
        seed, reference = module.hparams["seed"], joined(self._held_out, sources)
        generated = self.extractor(self._sampled(composed, module))
        return scores(generated, reference.features, reference.sums, self.extractor.name, seed)

    def _sampled(self, composed: ComposedDenoiser, module: CompartmentalizedDiffusion) -> Tensor:
        """Return n images, uint8, of the same noise in every validation."""
        settings = Settings(seed=module.hparams["seed"], steps=self.steps, device=str(module.device))
        shape = module.public.closed_form.shape
        batches = [sample_batch(composed, shape, some, settings).images for some in batched(self.n, self.batch_size)]
        return to_uint8(torch.cat(batches))
