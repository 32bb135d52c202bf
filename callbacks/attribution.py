"""Who is credited for held-out images whose source is known."""

from lightning.pytorch import LightningModule, Trainer

from callbacks.board import log_figure, log_scalars, log_table
from callbacks.figures import curves, matrix
from callbacks.held_out import HeldOut
from cdm_lightning.attribution import SIGMAS, Judgement, heldout_credits
from cdm_lightning.module import CompartmentalizedDiffusion


class Attribution(HeldOut):
    """Logs how held-out images of every source are credited, and how the weights of the true source fall with noise."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log everything, if every source in the model had held-out images; the step is the number of sources."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed = pl_module.composed()
        found = heldout_credits(composed, pl_module.public.calibration.floor, self.held_out)
        if found is None:
            return
        log_scalars(trainer, "attribution", found.credits.scalars(), step=len(composed.sources))
        self._draw(trainer, composed.sources, found.credits, found.by_sigma)

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
        own = {source: [float(level.matrix[true, true]) for level in by_sigma] for true, source in enumerate(sources)}
        title = "weight of the true source of held-out images"
        log_figure(trainer, "attribution/by_source", curves(SIGMAS, own, title, "weight", sources), step)
