"""Samples of every source and of the composed model, from the same noise, and the way from noise to image."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.board import log_figure
from callbacks.figures import image_rows, path_rows, shares
from callbacks.held_out import steps_of
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import per_image
from cdm_lightning.generation import Batch, Settings, sample_batch
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.sampling import Method, OnStep

IMAGES = 6
PATHS = 4


class SampleGrid(Callback):
    """Draws one row of samples per finished source, and one of the composed model, at every composed validation.

    A finished source's samples do not change, so each is drawn once in the life of this callback.

    Args:
        steps: sampler steps.
        sampler: its name.
    """

    def __init__(self, steps: int = 18, sampler: Method = "heun") -> None:
        self.steps, self.sampler = steps, sampler
        self._rows: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures; while a source is trained, of this source alone."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed, step = pl_module.composed(), steps_of(trainer, pl_module)
        finished = pl_module.phase.kind == "composed"
        states: list[Tensor] = []

        def observe(x: Tensor, sigma: Tensor) -> None:
            states.append((x / per_image((1 + sigma.square()).sqrt(), x))[:PATHS])  # of about unit variance

        batch = self._sample(composed, pl_module, observe)
        rows = {"composed": batch.images} | self._alone(composed, pl_module) if finished else {}
        title = f"{composed.strategy}, {self.sampler} {self.steps} steps, the same noise in each column"
        figure = image_rows(rows or {pl_module.phase.source: batch.images}, title, composed.sources)
        log_figure(trainer, "samples", figure, step)
        sigmas = [sigma for sigma, _ in batch.trajectory]
        path = torch.stack([*states, batch.images[:PATHS]], dim=1)
        log_figure(trainer, "samples/paths", path_rows(path, sigmas, composed.sigma_switch), step)
        if finished:
            weights = torch.stack([weight.mean(1) for _, weight in batch.trajectory], dim=1)
            log_figure(trainer, "weights", shares(sigmas, weights, composed.sources, composed.sigma_switch), step)

    def _alone(self, composed: ComposedDenoiser, module: CompartmentalizedDiffusion) -> dict[str, Tensor]:
        """Return the samples of every source alone."""
        self._rows.pop(module.phase.source, None)
        for source in composed.sources:
            if source not in self._rows:
                self._rows[source] = self._sample(composed.alone(source), module).images
        return {source: self._rows[source] for source in composed.sources}

    def _sample(
        self, composed: ComposedDenoiser, module: CompartmentalizedDiffusion, observe: OnStep | None = None
    ) -> Batch:
        seed, device = module.hparams["seed"], str(module.device)
        settings = Settings(seed=seed, sampler=self.sampler, steps=self.steps, device=device)
        return sample_batch(composed, module.public.closed_form.shape, range(IMAGES), settings, observe)
