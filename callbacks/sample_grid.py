"""Samples of every source and of the composed model, from the same noise."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.figures import image_rows, log_figure
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.generation import Settings, sample_batch
from cdm_lightning.module import CompartmentalizedDiffusion

IMAGES = 8


class SampleGrid(Callback):
    """Draws one row of samples per finished source, and one of the composed model, at every composed validation.

    Args:
        steps: sampler steps.
    """

    def __init__(self, steps: int = 18) -> None:
        self.steps = steps

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figure; its step is the number of sources."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed = pl_module.composed()
        rows = {"composed": self._samples(composed, pl_module)}
        for source in composed.sources:
            rows[source] = self._samples(_alone(composed, source), pl_module)
        figure = image_rows(rows, f"{composed.strategy}, Heun {self.steps} steps, the same noise in each column")
        log_figure(trainer, "samples", figure, len(composed.sources))

    def _samples(self, composed: ComposedDenoiser, module: CompartmentalizedDiffusion) -> Tensor:
        settings = Settings(seed=module.hparams["seed"], steps=self.steps, device=str(module.device))
        shape = module.public.closed_form.shape
        return sample_batch(composed, shape, range(IMAGES), settings).images


def _alone(composed: ComposedDenoiser, source: str) -> ComposedDenoiser:
    """Return the denoiser of one source, composed of itself."""
    return ComposedDenoiser(
        {source: composed.denoisers[source]},
        {source: composed.evidence[source]},
        {source: 1.0},
        "posterior",
        composed.sigma_switch,
    )
