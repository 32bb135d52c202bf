"""How close the samples of the composed model, and of the newest source alone, are to held-out images."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from callbacks.board import log_scalars
from callbacks.held_out import HeldOut
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import fidelity
from cdm_lightning.generation import Settings
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.reference import Reference, joined, source_reference
from cdm_lightning.sampling import Method

FEWEST = 2


class Quality(HeldOut):
    """Logs KID, Frechet distance (FID, if the extractor is Inception), precision and recall after every source.

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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the composed model's scores, and those of the newest source alone; the step is the number of sources."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        composed, newest = pl_module.composed(), pl_module.phase.source
        step, references = len(composed.sources), self._references()
        if all(source in references for source in composed.sources):
            together = joined(references, composed.sources)
            log_scalars(trainer, "composed", self._scores(composed, together, pl_module), step)
        if newest in references:
            alone = self._scores(composed.alone(newest), references[newest], pl_module)
            log_scalars(trainer, "newest_source", alone, step)

    def _references(self) -> dict[str, Reference]:
        """Return the reference of every source that has enough held-out images."""
        return {
            source: source_reference(self.references, source, images, self.extractor)
            for source, images in self.held_out.items()
            if len(images) >= FEWEST
        }

    def _scores(
        self, composed: ComposedDenoiser, reference: Reference, module: CompartmentalizedDiffusion
    ) -> dict[str, float]:
        """Return the scores of n images of the same noise in every validation."""
        seed, device = module.hparams["seed"], str(module.device)
        settings = Settings(n=self.n, seed=seed, sampler=self.sampler, steps=self.steps, device=device)
        return fidelity(composed, reference, self.extractor, module.public.closed_form.shape, settings)
