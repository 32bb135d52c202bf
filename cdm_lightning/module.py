"""The LightningModule: a backbone, the prompts by source, and the training of one of them at a time. Wiring only."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone, freeze
from cdm_lightning.compartments import Compartment, Compartments
from cdm_lightning.composition import ComposedDenoiser, Strategy
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN, edm_denoise, edm_scale, guided_denoise, per_image
from cdm_lightning.drafts import Drafts
from cdm_lightning.ema import EMA
from cdm_lightning.errors import BadInput
from cdm_lightning.images import from_uint8
from cdm_lightning.loss import denoising_loss, draw_sigma
from cdm_lightning.phase import Phase
from cdm_lightning.prompts import Prompts, Tokens
from cdm_lightning.public import Public
from cdm_lightning.seeding import generator, normal

WARM_UP = 0.05
COOL_DOWN = 0.5


class CompartmentalizedDiffusion(LightningModule):
    """A shared backbone and one prompt per source; trains either the backbone, or one prompt with the backbone frozen.

    Args:
        backbone: the network F; a class of your own by `class_path`.
        guide: `closed_form`: the network finishes the closed form's draft, so a new source needs no training.
            `none`: plain EDM preconditioning, the paper's way.
        compartment: what is trained per source on top of its closed form: nothing, or deep prompt `tokens`.
        backbone_steps: training steps of the backbone; `trainer.max_steps` counts for each source.
        learning_rate: of the backbone.
        prompt_learning_rate: of a prompt.
        tokens: prompt tokens per layer.
        ema_decay: of the running average of what is trained, which is what is stored.
        rank: directions that a cluster of a closed form keeps.
        evidence: what weighs the sources.
        strategy: how sources are composed; see `ComposedDenoiser`.
        sigma_switch: above this noise level every denoiser is a closed form; inf turns that off.
        seed: of everything random in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        guide: Literal["closed_form", "none"] = "closed_form",
        compartment: Literal["none", "tokens"] = "none",
        backbone_steps: int = 2000,
        learning_rate: float = 1e-3,
        prompt_learning_rate: float = 3e-3,
        tokens: int = 8,
        ema_decay: float = 0.999,
        rank: int = 64,
        evidence: Literal["gaussians"] = "gaussians",
        strategy: Strategy = "routed",
        sigma_switch: float | Literal["inf"] = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sigma_switch = float(sigma_switch)
        _check_settings(backbone_steps, tokens, rank, sigma_switch)
        if strategy == "draft" and (guide, compartment) != ("closed_form", "none"):
            raise BadInput("model.strategy draft needs model.guide closed_form and model.compartment none")
        self.backbone = backbone
        self.prompts = Prompts()
        self.guided = guide == "closed_form"
        self.save_hyperparameters(ignore=["backbone"])
        self.phase: Phase
        self.public: Public
        self.drafts: Drafts | None = None
        self.compartments: dict[str, Compartment] = {}
        self.ema: EMA | None = None

    def begin_backbone(self, phase: Phase, public: Public, drafts: Drafts) -> None:
        """Prepare the training of the backbone, from a start that depends on the seed alone."""
        self.phase, self.public, self.drafts = phase, public, drafts
        self.backbone.initialize(generator(self.hparams["seed"], "backbone", "start"))
        self.ema = EMA(self.trained, self.hparams["ema_decay"])

    def begin_source(self, phase: Phase, public: Public, drafts: Drafts) -> None:
        """Prepare the training of one source's prompt on the frozen backbone; `drafts` are of the source's folds."""
        self.phase, self.public, self.drafts = phase, public, drafts
        freeze(self.backbone)
        start = generator(self.hparams["seed"], phase.source, "start")
        self.prompts.put(phase.source, Tokens(self.backbone.prompt_shape, self.hparams["tokens"], start))
        self.ema = EMA(self.trained, self.hparams["ema_decay"])

    def begin_composed(self, phase: Phase, public: Public, compartments: dict[str, Compartment]) -> None:
        """Prepare the validation of the composed model of finished compartments; nothing is trained."""
        self.phase, self.public, self.compartments = phase, public, compartments
        freeze(self.backbone)
        for source, compartment in compartments.items():
            if compartment.prompt is not None:
                self.prompts.put(source, compartment.prompt)

    @property
    def trained(self) -> nn.Module:
        """Return the one part that this phase trains."""
        if self.phase.kind == "backbone":
            return self.backbone
        prompt = self.prompts.find(self.phase.source)
        assert prompt is not None
        return prompt

    @property
    def highest_sigma(self) -> float:
        """Return the top of the noise range that this phase trains: prompts are not used above the switch."""
        return SIGMA_MAX if self.phase.kind == "backbone" else min(self.hparams["sigma_switch"], SIGMA_MAX)

    def denoisers(self) -> Compartments:
        """Return the denoisers D_i of the finished compartments."""
        compartments = {source: compartment.to(self.device) for source, compartment in self.compartments.items()}
        return Compartments(self.backbone, compartments, self.public, self.guided, self.hparams["sigma_switch"])

    def composed(self) -> ComposedDenoiser:
        """Return the composed denoiser of the finished compartments."""
        denoisers = self.denoisers()
        settings = self.hparams
        return ComposedDenoiser(
            denoisers, denoisers.evidence(), denoisers.prior(), settings["strategy"], settings["sigma_switch"]
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the denoising loss of a batch of one source; noise depends on (seed, source, step, rank)."""
        x_0 = from_uint8(batch["image"])
        draw = generator(self.hparams["seed"], self.phase.source, "train", self.global_step, self.global_rank)
        sigma = draw_sigma(len(x_0), SIGMA_MIN, self.highest_sigma, draw).to(x_0.device)
        x = x_0 + per_image(sigma, x_0) * normal(x_0.shape, draw, x_0.device)
        denoised, scale = self.denoise_in_training(batch["key"], x, sigma, draw)
        loss = denoising_loss(denoised, x_0, scale).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(x_0))
        return loss

    def denoise_in_training(
        self, keys: list[str], x: Tensor, sigma: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return D(x; sigma), shaped as x, and the scale [batch] that its error is measured in."""
        found = self.prompts.find(self.phase.source)
        prompt = None if found is None else found.rows(len(x))
        if not self.guided:
            return edm_denoise(self.backbone, x, sigma, prompt=prompt), edm_scale(sigma)
        assert self.drafts is not None
        level = self.drafts.draw_level(draw)
        draft = self.drafts.denoise(self.drafts.rows_of(keys), level, x, sigma)
        error = self.public.error.at(sigma, torch.full_like(sigma, self.drafts.sizes[level]))
        return guided_denoise(self.backbone, x, sigma, draft, error, prompt=prompt), error

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the running average."""
        assert self.ema is not None
        self.ema.update()

    def on_train_end(self) -> None:
        """Put the running average in place of the raw parameters: it is what is stored."""
        assert self.ema is not None
        self.ema.apply_average()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Nothing by itself: callbacks look at the held-out images of each source."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the one trained part; warm-up, then constant, then a linear cool-down to a twentieth."""
        backbone = self.phase.kind == "backbone"
        rate = self.hparams["learning_rate" if backbone else "prompt_learning_rate"]
        parameters = self.trained.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01 if backbone else 0.0)
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen backbone out of a source's checkpoint."""
        if self.phase.kind == "source":
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if not key.startswith("backbone.")}


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate at `step` of `steps`."""
    warm_up, left = min(1.0, (step + 1) / max(WARM_UP * steps, 1)), (steps - step) / max(COOL_DOWN * steps, 1)
    return warm_up * max(0.05, min(1.0, left))


def _check_settings(backbone_steps: int, tokens: int, rank: int, sigma_switch: float) -> None:
    """Raise BadInput that names the first setting outside its range."""
    for key, value in (("backbone_steps", backbone_steps), ("tokens", tokens), ("rank", rank)):
        if value < 1:
            raise BadInput(f"model.{key} is {value}; expected at least 1")
    if not sigma_switch > SIGMA_MIN or math.isnan(sigma_switch):
        raise BadInput(f"model.sigma_switch is {sigma_switch}; expected a noise level above {SIGMA_MIN}, or inf")
