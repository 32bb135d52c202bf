"""A progress bar that says phase, source and position in the series."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from cdm_lightning.module import CompartmentalizedDiffusion


class PhaseProgressBar(TQDMProgressBar):
    """One bar per training phase, for instance `[3/11] source horse`; validation shows none."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    def on_train_epoch_start(self, trainer: Trainer, *_: object) -> None:
        """Count to the phase's steps: the stream of a source has no end of its own."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.reset(trainer.max_steps)
        assert isinstance(trainer.lightning_module, CompartmentalizedDiffusion)
        self.train_progress_bar.set_description(trainer.lightning_module.phase.title)

    def init_validation_tqdm(self) -> Tqdm:
        """Return a bar that is not shown."""
        return Tqdm(disable=True)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands behind the bar: the loss."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
