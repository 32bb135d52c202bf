"""The card that a fit of a source will have: known before anything is fitted, so that what is up to date is skipped."""

from typing import Any

import torch

from cdm_lightning.card import Card
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.privacy import Privacy
from cdm_lightning.prompts import KINDS
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.store import Store


def card_of(module: CompartmentalizedDiffusion, data: SourceData, store: Store, source: str, recipe: Recipe) -> Card:
    """Return the card that a fit of this source will have: known before anything is fitted."""
    settings, counts = module.hparams, data.class_counts(source)
    trained = settings["compartment"] != "none"
    if trained and recipe.max_steps < 1:
        raise BadInput(f"trainer.max_steps is {recipe.max_steps}; a prompt needs at least 1 training step")
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


def private_card(
    module: CompartmentalizedDiffusion,
    store: Store,
    source: str,
    privacy: Privacy,
    n: int,
    spent_epsilon: float,
    releases: int,
) -> Card:
    """Return the card of a private source, which holds nothing of its images but their released number.

    Args:
        module: its settings.
        store: where the compartment will lie.
        source: the private source.
        privacy: of this release.
        n: the released number of images.
        spent_epsilon: of all its releases together.
        releases: how many there were.
    """
    own: dict[str, Any] = {"rank": module.hparams["rank"], "epsilon": privacy.epsilon, "delta": privacy.delta}
    if module.hparams["clusters"] != MOST_CLUSTERS:
        own["clusters"] = module.hparams["clusters"]
    return Card(
        source=source,
        n=n,
        class_counts={},
        data_sha256="",
        seed=0,
        steps=0,
        compartment="none",
        prompt_parameters=0,
        sigma_range=None,
        settings=own | {"spent_epsilon": spent_epsilon, "releases": releases},
        backbone_sha256=store.info.backbone_sha256,
        image_shape=store.info.image_shape,
        torch_version=torch.__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


def prompt_settings(module: CompartmentalizedDiffusion) -> dict[str, Any]:
    """Return the settings of the module that change what this kind of prompt learns."""
    settings = module.hparams
    names = ["ema_decay", *KINDS[settings["compartment"]].settings]
    if settings["class_labels"]:
        names.append("label_dropout")
    return {name: settings[name] for name in names} | {"prompt_learning_rate": module.prompt_rate}
