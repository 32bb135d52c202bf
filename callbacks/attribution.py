"""Who is credited for held-out images whose source is known."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.board import log_figure, log_scalars, log_table
from callbacks.figures import curves, matrix
from callbacks.held_out import HeldOut
from cdm_lightning.attribution import Judgement, credits_of, judge, weights_at
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.images import from_uint8
from cdm_lightning.module import CompartmentalizedDiffusion

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
IMAGES, IMAGES_OF_ALL = 64, 320
IMAGES_PER_LEVEL = 16


class Attribution(HeldOut):
    """Logs how held-out images of every source are credited, and how the weights of the true source fall with noise."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log everything, if every source in the model had held-out images; the step is the number of sources."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed, floor = pl_module.composed(), pl_module.public.calibration.floor
        if not all(source in self.held_out for source in composed.sources):
            return
        most = min(max(IMAGES_OF_ALL // len(composed.sources), IMAGES_PER_LEVEL), IMAGES)
        images = [from_uint8(self.held_out[source][:most]) for source in composed.sources]
        with torch.inference_mode():
            credits = judge([credits_of(composed, x_0, floor) for x_0 in images])
            by_sigma = [self._at(composed, images, sigma) for sigma in SIGMAS]
        log_scalars(trainer, "attribution", credits.scalars(), step=len(images))
        self._draw(trainer, composed.sources, credits, by_sigma)

    @staticmethod
    def _at(composed: ComposedDenoiser, images: list[Tensor], sigma: float) -> Judgement:
        return judge([weights_at(composed, x_0[:IMAGES_PER_LEVEL], sigma) for x_0 in images])

    @staticmethod
    def _draw(trainer: Trainer, sources: list[str], credits: Judgement, by_sigma: list[Judgement]) -> None:
        step, said = len(sources), "informative" if credits.informative else "not informative"
        title = f"credit of held-out images, {said}: {credits.cross_entropy:.2f} nats, accuracy {credits.accuracy:.0%}"
        log_figure(trainer, "attribution/matrix", matrix(credits.matrix, sources, title), step)
        log_table(trainer, "attribution/table", "true source, credited source", credits.matrix, sources, step)
        lines = {
            "accuracy": [level.accuracy for level in by_sigma],
            "weight of the true source": [level.mean_credit for level in by_sigma],
            "calibration error": [level.calibration_error for level in by_sigma],
            "knowing nothing": [1 / step] * len(by_sigma),
        }
        log_figure(trainer, "attribution/by_sigma", curves(SIGMAS, lines, "weights of held-out images", "share"), step)
