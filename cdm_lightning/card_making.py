"""The card that a fit of a source will have: known before anything is fitted, so that what is up to date is skipped."""

from dataclasses import dataclass
from typing import Any

import torch

from cdm_lightning.card import Card
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.prompts import KINDS
from cdm_lightning.prompts.copied import Copied
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.store import Store


def card_of(module: CompartmentalizedDiffusion, data: SourceData, store: Store, source: str, recipe: Recipe) -> Card:
    """Return the card that a fit of this source will have: known before anything is fitted."""
    settings, counts = module.hparams, data.class_counts(source)
    trained = settings["compartment"] != "none"
    own = {"rank": settings["rank"]}
    if settings["clusters"] != MOST_CLUSTERS:
        own["clusters"] = settings["clusters"]
    if settings["class_labels"]:
        own["class_labels"] = True
    if trained:
        own |= prompt_settings(module) | recipe.training
    if data.public_mix:
        own["public_mix"] = data.public_mix
    classes = len(counts) if settings["class_labels"] else 0
    return Card(
        source=source,
        n=sum(counts.values()),
        class_counts=counts,
        data_sha256=data.data_sha256(source),
        seed=settings["seed"],
        steps=recipe.max_steps if trained else 0,
        compartment=settings["compartment"],
        prompt_parameters=module.new_prompt(source, classes).count if trained else 0,
        sigma_range=(SIGMA_MIN, min(settings["sigma_switch"], SIGMA_MAX)) if trained else None,
        settings=own,
        backbone_sha256=store.info.backbone_sha256,
        image_shape=store.info.image_shape,
        torch_version=torch.__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class PrivateFit:
    """What a fit of a private source is known by, beside its settings; all of it was released or is known to all.

    Attributes:
        n: the released number of images.
        epsilon: of all that the source has released so far, this included.
        releases: how many there were.
        slack: of all of them together.
        multiplier: deviation of the noise in the training of its prompt, in clipping norms; None without a prompt.
        clipped_at: what gradients are cut to; None without a prompt.
    """

    n: int
    epsilon: float
    releases: int
    slack: float
    multiplier: float | None = None
    clipped_at: float | None = None

    @classmethod
    def of(cls, card: Card) -> "PrivateFit":
        """Return what the card of a private source says."""
        assert card.epsilon is not None
        derived = (card.settings.get(name) for name in ("noise_multiplier", "clipped_at"))
        numbers = (float(value) if value else None for value in derived)
        return cls(card.n, card.epsilon, int(card.settings["releases"] or 0), card.slack, *numbers)


def private_card(
    module: CompartmentalizedDiffusion, store: Store, source: str, recipe: Recipe, fit: PrivateFit
) -> Card:
    """Return the card of a private source, which holds nothing of its images but their released number.

    Args:
        module: its settings.
        store: where the compartment will lie.
        source: the private source.
        recipe: of its fit.
        fit: what is known of it.
    """
    settings, privacy = module.hparams, recipe.privacy
    trained = settings["compartment"] != "none"
    own: dict[str, Any] = {"rank": settings["rank"], "epsilon": privacy.epsilon, "delta": privacy.delta}
    if settings["clusters"] != MOST_CLUSTERS:
        own["clusters"] = settings["clusters"]
    if trained:
        own |= prompt_settings(module) | recipe.training
        own |= {"clipping_norm": privacy.clipping_norm, "draws": privacy.draws, "noise_multiplier": fit.multiplier}
        own |= {
            "prompt_share": privacy.prompt_share,
            "sampling_rate": sampling_rate(recipe, fit.n),
            "clipped_at": fit.clipped_at,
        }
    if fit.slack:
        own["slack"] = fit.slack
    return Card(
        source=source,
        n=fit.n,
        class_counts={},
        data_sha256="",
        seed=settings["seed"] if trained else 0,
        steps=recipe.max_steps if trained else 0,
        compartment=settings["compartment"],
        prompt_parameters=module.new_prompt(source, 0).count if trained else 0,
        sigma_range=(SIGMA_MIN, min(settings["sigma_switch"], SIGMA_MAX)) if trained else None,
        settings=own | {"spent_epsilon": fit.epsilon, "releases": fit.releases},
        backbone_sha256=store.info.backbone_sha256,
        image_shape=store.info.image_shape,
        torch_version=torch.__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


def sampling_rate(recipe: Recipe, n: int) -> float:
    """Return the probability of an image to be in a step of DP-SGD, so that a batch is to be expected of n images."""
    return min(1.0, int(recipe.training["batch_size"] or 0) / n)


def prompt_settings(module: CompartmentalizedDiffusion) -> dict[str, Any]:
    """Return the settings of the module that change what this kind of prompt learns."""
    settings, kind = module.hparams, KINDS[module.hparams["compartment"]]
    names = ["ema_decay", *kind.settings]
    if settings["optimizer"] != "adamw" and issubclass(kind, Copied):
        names.append("optimizer")
    if settings["class_labels"]:
        names.append("label_dropout")
    return {name: settings[name] for name in names} | {"prompt_learning_rate": module.prompt_rate}
