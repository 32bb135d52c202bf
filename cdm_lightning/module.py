"""The LightningModule: a backbone, the prompts by source, and the training of one of them at a time. Wiring only."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone, freeze
from cdm_lightning.compartment import Compartment, label_number
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import (
    PRECONDITIONINGS,
    SIGMA_MAX,
    SIGMA_MIN,
    Network,
    PreconditioningName,
    denoise,
    guided_denoise,
    per_image,
)
from cdm_lightning.drafts import Drafts, LabelledDrafts, MixedDrafts, ReleasedDraft
from cdm_lightning.ema import EMA
from cdm_lightning.errors import BadInput
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.images import from_uint8
from cdm_lightning.loss import denoising_loss, draw_sigma
from cdm_lightning.module_checks import check_backbone_steps, check_counts, check_rates, check_shares, check_switch
from cdm_lightning.optimizers import OptimizerName, optimizer_for
from cdm_lightning.phase import Phase
from cdm_lightning.private_gradient import Losses, PrivateSteps, summed_gradient
from cdm_lightning.prompts import KINDS, NO_LABEL, Prompt, Prompts, Tokens
from cdm_lightning.prompts.head import head_of
from cdm_lightning.public import Public
from cdm_lightning.schedule import learning_rate_factor
from cdm_lightning.seeding import generator, normal
from cdm_lightning.strategy import Strategy

FROZEN = "backbone."


class CompartmentalizedDiffusion(LightningModule):
    """A shared backbone and one prompt per source; trains either the backbone, or one prompt with the backbone frozen.

    Args:
        backbone: the network F; a class of your own by `class_path`.
        guide: `closed_form`: the network finishes the closed form's draft, so a new source needs no training.
            `none`: a plain diffusion network, the paper's way.
        preconditioning: how the network sees x and its noise level, and what it predicts: `edm`; or the noise, at times
            0..999 of the linear (`vp`) or scaled-linear schedule (`vp_scaled_linear`), as public weights do.
        compartment: what is trained per source on top of its closed form: nothing, deep prompt `tokens`, low-rank
            additions to the linear layers (`lora`), a copy of the guide's convolutions (`head`), or a `full` copy of
            the backbone.
        backbone_steps: training steps of the backbone; 0 takes its `weights` as they are, without a guide;
            `trainer.max_steps` counts for each source.
        optimizer: `adamw`, or `muon` for the layers of the backbone and of a prompt that is a copy of it; see
            `optimizer_for`.
        learning_rate: of the backbone; by default what suits its class.
        prompt_learning_rate: of a prompt; by default what suits its kind.
        tokens: prompt tokens per layer.
        lora_rank: rank of the additions to a linear layer.
        class_labels: whether a compartment also learns the classes of its source, so that one can be asked for.
        label_dropout: the share of the training images whose label a prompt is not told.
        ema_decay: of the running average of what is trained, which is what is stored.
        rank: directions that a cluster of a closed form keeps.
        clusters: Gaussians of a source that are stored, at most; one for every 50 images. Its closed form has one for
            every 250, merged from these.
        evidence: what weighs the sources.
        strategy: how sources are composed; see `ComposedDenoiser`.
        sigma_switch: above this noise level every denoiser is a closed form; inf turns that off.
        seed: of everything random in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        guide: Literal["closed_form", "none"] = "closed_form",
        preconditioning: PreconditioningName = "edm",
        compartment: Literal["none", "tokens", "lora", "head", "full"] = "none",
        backbone_steps: int = 2000,
        optimizer: OptimizerName = "adamw",
        learning_rate: float | None = None,
        prompt_learning_rate: float | None = None,
        tokens: int = 8,
        lora_rank: int = 8,
        class_labels: bool = False,
        label_dropout: float = 0.1,
        ema_decay: float = 0.999,
        rank: int = 64,
        clusters: int = MOST_CLUSTERS,
        evidence: Literal["gaussians"] = "gaussians",
        strategy: Strategy = "routed",
        sigma_switch: float | Literal["inf"] = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sigma_switch = float(sigma_switch)
        check_backbone_steps(backbone_steps, finished=guide == "none" and backbone.weights is not None)
        check_counts(tokens=tokens, lora_rank=lora_rank, rank=rank, clusters=clusters)
        check_shares(label_dropout=label_dropout, ema_decay=ema_decay)
        check_rates(learning_rate=learning_rate, prompt_learning_rate=prompt_learning_rate)
        check_switch(sigma_switch)
        if compartment == "head":
            head_of(backbone)
        if strategy == "draft" and guide != "closed_form":
            raise BadInput("model.strategy draft finishes closed forms' drafts, so it needs model.guide closed_form")
        self.backbone = backbone
        self.prompts = Prompts()
        self.guided, self.preconditioning = guide == "closed_form", PRECONDITIONINGS[preconditioning]
        self.save_hyperparameters(ignore=["backbone"])
        self.phase: Phase
        self.public: Public
        self.drafts: Drafts | LabelledDrafts | MixedDrafts | ReleasedDraft | None = None
        self.private: PrivateSteps | None = None
        self.classes: list[str] = []
        self.inputs_sha256 = ""
        self.compartments: dict[str, Compartment] = {}
        self.ema: EMA | None = None

    def begin_backbone(self, phase: Phase, public: Public, drafts: Drafts, n: int) -> None:
        """Prepare the training of the backbone on n images, from a start that depends on the seed alone."""
        self.phase, self.public, self.drafts = phase, public, drafts
        self.compartments = {phase.source: Compartment(n, public.closed_form, public.closed_form)}
        self.backbone.initialize(generator(self.hparams["seed"], "backbone", "start"))
        self.ema = EMA(self.trained, self.hparams["ema_decay"])

    def begin_source(
        self,
        phase: Phase,
        public: Public,
        drafts: Drafts | LabelledDrafts | MixedDrafts | ReleasedDraft,
        untrained: Compartment,
        private: PrivateSteps | None = None,
    ) -> None:
        """Prepare the training of one source's prompt on the frozen backbone.

        Args:
            phase: names the source.
            public: what was fitted on `public`.
            drafts: of the source's own folds; of a private source, what it has released.
            untrained: the source's compartment but for the prompt; without classes, nothing is told of labels.
            private: the steps of a private source; its prompt are tokens.
        """
        self.phase, self.public, self.drafts, self.classes = phase, public, drafts, sorted(untrained.classes)
        self.private = private
        freeze(self.backbone)
        prompt = self.new_prompt(phase.source, len(self.classes))
        self.prompts.put(phase.source, prompt)
        self.compartments = {phase.source: replace(untrained, prompt=prompt)}
        self.ema = EMA(self.trained, self.hparams["ema_decay"])

    def new_prompt(self, source: str, classes: int) -> Prompt:
        """Return the start of a source's prompt, a function of seed, source and backbone."""
        kind, start = KINDS[self.hparams["compartment"]], generator(self.hparams["seed"], source, "start")
        sizes = {name: self.hparams[name] for name in kind.settings}
        return kind(self.backbone, classes=classes, generator=start, **sizes)

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
    def backbone_rate(self) -> float:
        """Return the learning rate of the backbone."""
        given: float | None = self.hparams["learning_rate"]
        return self.backbone.learning_rate if given is None else given

    @property
    def prompt_rate(self) -> float:
        """Return the learning rate of a prompt."""
        given: float | None = self.hparams["prompt_learning_rate"]
        return KINDS[self.hparams["compartment"]].learning_rate if given is None else given

    @property
    def highest_sigma(self) -> float:
        """Return the top of the noise range that this phase trains: prompts are not used above the switch."""
        return SIGMA_MAX if self.phase.kind == "backbone" else min(self.hparams["sigma_switch"], SIGMA_MAX)

    def denoisers(self) -> Compartments:
        """Return the denoisers D_i of the compartments: all finished ones, or the one whose phase is trained."""
        compartments = {source: compartment.to(self.device) for source, compartment in self.compartments.items()}
        switch: float = self.hparams["sigma_switch"]
        return Compartments(self.backbone, compartments, self.public, self.guided, switch, self.preconditioning)

    def composed(self) -> ComposedDenoiser:
        """Return the composed denoiser of the compartments."""
        return self.denoisers().composed(self.hparams["strategy"])

    def on_fit_start(self) -> None:
        """Put the closed forms that guide the training images where the images will be."""
        if self.drafts is not None:
            self.drafts = self.drafts.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the denoising loss of a batch of one source, also by image [batch], and the noise levels [batch].

        The noise depends on (seed, source, step, rank). Of a private source nothing but the gradient is returned.
        """
        if self.private is not None:
            return {"loss": self.private_loss(self.private, batch["image"])}
        x_0 = from_uint8(batch["image"])
        draw = generator(self.hparams["seed"], self.phase.source, "train", self.global_step, self.global_rank)
        sigma = draw_sigma(len(x_0), SIGMA_MIN, self.highest_sigma, draw).to(x_0.device)
        x = x_0 + per_image(sigma, x_0) * normal(x_0.shape, draw, x_0.device)
        denoised, scale = self.denoise_in_training(batch, x, sigma, draw)
        by_image = denoising_loss(denoised, x_0, scale)
        loss = by_image.mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(x_0))
        return {"loss": loss, "by_image": by_image.detach(), "sigma": sigma}

    def denoise_in_training(
        self, batch: dict[str, Any], x: Tensor, sigma: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return D(x; sigma), shaped as x, and the scale [batch] that its error is measured in."""
        label = self.draw_labels(batch["label"], draw).to(x.device)
        return self.finish_drafts(self.network_in_training(label), batch.get("key", []), label, x, sigma, draw)

    def finish_drafts(
        self, network: Network, keys: list[str], label: Tensor, x: Tensor, sigma: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return D(x; sigma) with a network F, and the scale of its error; see `denoise_in_training`."""
        if not self.guided:
            return denoise(self.preconditioning, network, x, sigma), self.preconditioning.c_out(sigma)
        assert self.drafts is not None
        draft, n = self.drafts.guide(keys, label != NO_LABEL, x, sigma, draw)
        error = self.public.error.at(sigma, n)
        return guided_denoise(self.preconditioning, network, x, sigma, draft, error), error

    def private_loss(self, steps: PrivateSteps, images: Tensor) -> Tensor:
        """Return a number whose gradient is the noised one of a private step (see `private_gradient`), and log epsilon.

        It tells nothing else of the images uint8 [n, channel, height, width], n >= 0.
        """
        tokens, losses = self.private_losses(steps, images)
        summed = summed_gradient(tokens, losses, steps.clipping_norm)
        self.log("epsilon", steps.epsilon(self.global_step + 1), prog_bar=True, batch_size=1)
        return (tokens * steps.released(summed, self.global_step).to(tokens)).sum()

    def private_losses(self, steps: PrivateSteps, images: Tensor) -> tuple[Tensor, Iterator[tuple[int, Losses]]]:
        """Return the tokens that are trained, and the losses of images, as `summed_gradient` wants them."""
        assert isinstance(self.trained, Tokens)
        parts = [part for part in images.split(steps.together) if len(part)]
        return self.trained.tokens, ((len(part), partial(self.losses_by_image, steps, part)) for part in parts)

    def losses_by_image(self, steps: PrivateSteps, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss of each image [n], averaged over draws; `tokens` [n, layer, token, width] are its own."""
        own, draws = steps.generators(images, self.global_step), steps.draws
        clean, prompt = from_uint8(images).repeat_interleave(draws, 0), tokens.repeat_interleave(draws, 0)
        sigma = torch.cat([draw_sigma(draws, SIGMA_MIN, self.highest_sigma, draw) for draw in own]).to(clean.device)
        noise = torch.cat([normal((draws, *clean.shape[1:]), draw) for draw in own]).to(clean.device)
        x, no_label = clean + per_image(sigma, clean) * noise, torch.full_like(sigma, NO_LABEL, dtype=torch.long)
        denoised, scale = self.finish_drafts(partial(self.backbone, prompt=prompt), [], no_label, x, sigma, own[0])
        return denoising_loss(denoised, clean, scale).reshape(len(images), draws).mean(1)

    def draw_labels(self, labels: list[str], draw: torch.Generator) -> Tensor:
        """Return the label [batch] that the prompt is told of each image: its own, or none."""
        if not self.classes:
            return torch.full((len(labels),), NO_LABEL)
        own = torch.tensor([label_number(self.classes, label) for label in labels])
        dropped = torch.rand(len(labels), generator=draw) < self.hparams["label_dropout"]
        return own.masked_fill(dropped, NO_LABEL)

    def network_in_training(self, label: Tensor) -> Network:
        """Return the network F, with this phase's prompt if it trains one, for the labels [batch]."""
        prompt = self.prompts.find(self.phase.source)
        if prompt is None:
            return self.backbone
        return type(prompt).network(self.backbone, [prompt], torch.zeros_like(label), label)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then update the running average: so it is part of the step, and of every checkpoint after it."""
        super().optimizer_step(*arguments, **named)
        assert self.ema is not None
        self.ema.update()

    def on_train_end(self) -> None:
        """Put the running average in place of the raw parameters: it is what is stored."""
        assert self.ema is not None
        self.ema.apply_average()

    def on_validation_start(self) -> None:
        """Put the running average in place of the raw parameters while callbacks look at the model."""
        if self.ema is not None:
            self.ema.swap()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Nothing by itself: callbacks look at the held-out images of each source."""

    def on_validation_end(self) -> None:
        """Put the raw parameters back, which training goes on with."""
        if self.ema is not None:
            self.ema.swap()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the one trained part; warm-up, then constant, then a linear cool-down to a twentieth."""
        rate = self.backbone_rate if self.phase.kind == "backbone" else self.prompt_rate
        optimizer = optimizer_for(self.trained, self.hparams["optimizer"], rate)
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the result depends on; leave the frozen backbone out of a source's checkpoint."""
        checkpoint["inputs_sha256"] = self.inputs_sha256
        if self.phase.kind == "source":
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if not key.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen backbone of the store back, so that everything else must be there."""
        if self.phase.kind == "source":
            own = self.state_dict()
            checkpoint["state_dict"] |= {key: own[key] for key in own if key.startswith(FROZEN)}
