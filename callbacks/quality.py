"""How close the samples of the composed model, and of one source alone, are to held-out images."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from callbacks.board import log_scalars
from callbacks.held_out import HeldOut, steps_of
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import composed_fidelity
from cdm_lightning.generation import Settings
from cdm_lightning.metrics import score_name
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.reference import Reference, references_of
from cdm_lightning.sampling import Method


class Quality(HeldOut):
    """Logs KID, Frechet distance (FID, if the extractor is Inception), precision and recall at every validation.

    After a source: of the composed model (`composed`), and of the newest source alone (`newest_source`). While a prompt
    or the backbone is trained: of its own source alone (`in_training`), since its run may not depend on another one.

    Args:
        extractor: makes the features that are compared.
        n: sampled images.
        references: folder where the features of each source's held-out images are kept.
        steps: sampler steps.
        sampler: its name.
    """

    def __init__(
        self, extractor: FeatureExtractor, n: int, references: Path, steps: int = 18, sampler: Method = "heun"
    ) -> None:
        super().__init__()
        self.extractor, self.n, self.references, self.steps = extractor, n, references, steps
        self.sampler = sampler

    def name(self, metric: str) -> str:
        """Return the full name of a metric, with n and the extractor."""
        return score_name(metric, self.n, self.extractor.name)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the held-out images of this validation allow."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed, source = pl_module.composed(), pl_module.phase.source
        finished, step = pl_module.phase.kind == "composed", steps_of(trainer, pl_module)
        references = references_of(self.references, self.held_out, self.extractor)
        if finished:
            self._log(trainer, "composed", self._scores(composed, references, pl_module), step)
        alone = self._scores(composed.alone(source), references, pl_module)
        self._log(trainer, "newest_source" if finished else "in_training", alone, step)

    def _scores(
        self, composed: ComposedDenoiser, references: Mapping[str, Reference], module: CompartmentalizedDiffusion
    ) -> dict[str, float] | None:
        """Return the scores of n images of the same noise in every validation; None without references."""
        seed, device = module.hparams["seed"], str(module.device)
        settings = Settings(n=self.n, seed=seed, sampler=self.sampler, steps=self.steps, device=device)
        return composed_fidelity(composed, references, self.extractor, module.public.closed_form.shape, settings)

    def _log(self, trainer: Trainer, group: str, values: Mapping[str, float] | None, step: int) -> None:
        """Log the scores, if there are any, and the ends of a band of one deviation around KID."""
        if values is None:
            return
        log_scalars(trainer, group, values, step)
        kid, deviation = values[self.name("kid")], values[self.name("kid_deviation")]
        band = {self.name(f"{group}_lower"): kid - deviation, self.name(f"{group}_upper"): kid + deviation}
        log_scalars(trainer, "kid_band", band, step)
