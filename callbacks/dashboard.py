"""What makes a run in TensorBoard readable by itself: its configuration, hyperparameters, and pages of curves."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.board import Layout, log_hyperparameters, log_layout, log_text
from callbacks.quality import Quality
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.store import CONFIG, UNFINISHED

TRAINING: Layout = {
    "Training, all sources": {
        "loss": ["Multiline", ["^loss$"]],
        "loss where there is least noise": ["Multiline", ["loss_by_noise/least_noise"]],
        "loss where there is most noise": ["Multiline", ["loss_by_noise/most_noise"]],
        "norm of the gradient": ["Multiline", ["norm/gradient"]],
        "norm of what is trained": ["Multiline", ["norm/parameters"]],
        "images per second": ["Multiline", ["training/images_per_second"]],
    }
}
COMPOSED: Layout = {
    "Composed model, step = number of sources": {
        "attribution of held-out images": ["Multiline", ["attribution/(accuracy|mean_credit|calibration_error)"]],
        "forgetting": ["Multiline", ["forgetting/average"]],
    }
}


class Dashboard(Callback):
    """Writes configuration, hyperparameters and layout once per run of a phase, beside what other callbacks log.

    Args:
        quality: what measures samples in this run, if anything does.
    """

    def __init__(self, quality: Sequence[Quality]) -> None:
        self.quality = quality

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the training of a phase, with the scores of its samples if it is validated on the way."""
        layout = dict(TRAINING)
        for quality in self.quality if trainer.limit_val_batches else []:
            layout |= {"Samples of the source in training": quality_charts(quality, "in_training")}
        self._describe(trainer, pl_module, layout)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the composed run."""
        if trainer.state.fn != "validate":
            return
        layout = dict(COMPOSED)
        for quality in self.quality:
            layout |= {"Samples of the composed model, step = number of sources": quality_charts(quality, "composed")}
            layout |= {"Samples of the newest source alone": quality_charts(quality, "newest_source")}
        self._describe(trainer, pl_module, layout)

    def _describe(self, trainer: Trainer, module: LightningModule, layout: Layout) -> None:
        assert isinstance(module, CompartmentalizedDiffusion)
        folder = Path(trainer.default_root_dir)
        text = (folder / (UNFINISHED if (folder / UNFINISHED).exists() else CONFIG)).read_text()
        log_text(trainer, "config", f"```yaml\n{text}```", step=0)
        log_layout(trainer, layout)
        log_hyperparameters(trainer, hyperparameters(module, trainer), self._metrics())

    def _metrics(self) -> list[str]:
        """Return the scalars that HParams shows beside the settings; the same in every run, whoever logs them."""
        scores = [f"composed/{quality.name(metric)}" for quality in self.quality for metric in ("kid", "frechet")]
        return ["loss", "attribution/cross_entropy", "forgetting/average", *scores]


def quality_charts(quality: Quality, group: str) -> dict[str, list[str | list[str]]]:
    """Return the charts of one group of scores: KID with a band of one deviation, and the rest."""
    kid = [f"{group}/{quality.name('kid')}"]
    band = [f"kid_band/{quality.name(f'{group}_{end}')}" for end in ("lower", "upper")]
    shares = [f"{group}/{quality.name(metric)}" for metric in ("precision", "recall")]
    return {
        f"KID, one deviation around it, {quality.extractor.name}, {quality.n} images": ["Margin", kid + band],
        "Frechet distance": ["Multiline", [f"{group}/{quality.name('frechet')}"]],
        "precision and recall": ["Multiline", shares],
    }


def hyperparameters(module: CompartmentalizedDiffusion, trainer: Trainer) -> dict[str, str | int | float | bool]:
    """Return the settings that are numbers, words or switches."""
    settings = dict(module.hparams) | module.backbone.init_args
    plain = {name: value for name, value in settings.items() if isinstance(value, str | int | float | bool)}
    return plain | {"max_steps": trainer.max_steps, "precision": str(trainer.precision)}
