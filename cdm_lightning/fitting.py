"""Fit: the backbone on `public` if the store has none, then each source from its own data alone, one after another."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cdm_lightning.card_making import card_of
from cdm_lightning.claim import claimed
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.fit_checks import (
    PUBLIC,
    backbone_settings,
    check_backbone,
    check_data,
    check_public_mix,
    check_steps,
    privacy_settings,
)
from cdm_lightning.images import from_uint8
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import pack_backbone, pack_compartment, unpack_backbone
from cdm_lightning.phase import Clock, Phase
from cdm_lightning.private_fitting import check_privacy, check_private_store, fit_private_source
from cdm_lightning.pseudo_sources import PseudoSources
from cdm_lightning.public import fit_public
from cdm_lightning.ranks import is_rank_zero, wait_for_all
from cdm_lightning.recipe import Recipe
from cdm_lightning.source_forms import drafts_of_source, fit_classes, fit_untrained
from cdm_lightning.store import CONFIG, Store
from cdm_lightning.training import discard_checkpoint, train
from cdm_lightning.validation import validate_composed, was_cut

FEW_IMAGES = 20
log = logging.getLogger(__name__)


def fit(recipe: Recipe, store_path: Path, refit: bool = False) -> Store:
    """Fit what is missing or changed, and return the store; a phase that is up to date is skipped.

    Args:
        recipe: makes module, data and trainer of each phase.
        store_path: the store, made if it is not there.
        refit: fit the chosen sources again even if nothing changed.

    Raises:
        BadInput: data, store or configuration cannot be used; the store stays as it was. Or another process writes one
            of the sources; what was finished before it stays.
    """
    data = recipe.data()
    data.prepare()
    sources = data.chosen_sources()
    store = Store(store_path)
    described = recipe.module()
    check_public_mix(described, data)
    check_steps(described, recipe.max_steps)
    check_privacy(recipe, described, data, sources)
    needs_public = not store.has_backbone() or data.public_mix > 0
    check_data(data, sources, needs_public, private=frozenset(filter(recipe.privacy.covers, sources)))
    if store.has_backbone():
        check_backbone(store, described, data)
        check_private_store(recipe.privacy, store, sources, refit)
    new_backbone = int(not Store.create(store_path).has_backbone())
    total = len(sources) + new_backbone
    if new_backbone:
        with _claimed(store, PUBLIC):
            if store.has_backbone():  # somebody else's, since this fit has begun
                check_backbone(store, described, data)
            else:
                fit_backbone(recipe, store, Phase("backbone", PUBLIC, 1, total))
    for position, source in enumerate(sources, start=1 + new_backbone):
        phase = Phase("source", source, position, total)
        fit_one = fit_private_source if recipe.privacy.covers(source) else fit_source
        with _claimed(store, source):
            fitted = fit_one(recipe, store, phase, refit)
        if is_rank_zero() and (fitted or was_cut(store)):
            validate_composed(recipe, store, Phase("composed", source, position, total))
        wait_for_all()
    return store


def _claimed(store: Store, source: str) -> AbstractContextManager[None]:
    return claimed(store.runs, source, "fitted") if is_rank_zero() else nullcontext()


def fit_backbone(recipe: Recipe, store: Store, phase: Phase) -> None:
    """Fit all that depends on `public` alone, and store it."""
    module, data = recipe.module(), recipe.data()
    settings = module.hparams
    keys, images, labels = data.images(PUBLIC, "train")
    clock, shares = Clock(phase), recipe.privacy.shares(settings["compartment"] != "none")
    with clock.part("closed_forms", f"closed forms of {len(keys)} public images"):
        pseudo = PseudoSources.cut(from_uint8(images), keys, labels, settings["seed"])
        public, drafts = fit_public(
            pseudo,
            seed=settings["seed"],
            rank=settings["rank"],
            sigma_switch=settings["sigma_switch"],
            mu=None if shares is None else shares.form,
        )
    module.begin_backbone(phase, public, drafts, len(keys))
    channels, height, width = images.shape[1:]
    shape, public_sha256 = (channels, height, width), data.data_sha256(PUBLIC)
    described = backbone_settings(module, shape) | recipe.training | {"torch": torch.__version__}
    described |= privacy_settings(recipe.privacy, data, trained=settings["compartment"] != "none")
    inputs = described | {"public_data_sha256": public_sha256, "threads": torch.get_num_threads()}
    with clock.part("training", f"{settings['backbone_steps']} training steps"):
        train(recipe, module, data, store.runs / "backbone", settings["backbone_steps"], inputs)
    if is_rank_zero():
        recipe.save_config(phase, store.runs / "backbone" / CONFIG)
        store.write_backbone(
            pack_backbone(module.backbone, public),
            described,
            image_shape=shape,
            sigma_range=(SIGMA_MIN, SIGMA_MAX),
            public_sha256=public_sha256,
        )
        discard_checkpoint(store.runs / "backbone")
        clock.save(store.runs / "backbone")
    wait_for_all()


def fit_source(recipe: Recipe, store: Store, phase: Phase, refit: bool) -> bool:
    """Fit one source's compartment and store it; return whether there was anything to do."""
    module, data = recipe.module(), recipe.data()
    settings, card = module.hparams, card_of(module, data, store, phase.source, recipe)
    if not refit and store.has_compartment(phase.source) and store.read_card(phase.source).inputs() == card.inputs():
        log.info("%s: up to date, skipped", phase.title)
        return False
    if (forgotten := store.forgotten_on(phase.source)) is not None:
        log.warning("%s: it was forgotten on %s, and is learned again", phase.title, forgotten)
    if card.n < FEW_IMAGES:
        log.warning("%s: only %d images; a closed form of so few may reveal them", phase.title, card.n)
    backbone, public = unpack_backbone(*store.read_backbone())
    keys, images, labels = data.images(phase.source, "train")
    x_0 = from_uint8(images)
    named = labels if settings["class_labels"] else []
    clock = Clock(phase)
    with clock.part("closed_form", f"closed form of {len(keys)} images"):
        untrained = fit_untrained(x_0, public, settings["clusters"], card.seed, phase.source)
        classes = fit_classes(x_0, named, public, settings["clusters"], card.seed, phase.source)
        compartment = replace(untrained, n=card.n, classes=classes, public_mix=card.public_mix)
    folder = store.runs / "sources" / phase.source
    if card.steps:
        module.backbone.load_state_dict(backbone.state_dict())
        with clock.part("training", f"{card.steps} training steps"):
            drafts = drafts_of_source(x_0, keys, named, public, settings["clusters"], card.public_mix)
            module.begin_source(phase, public, drafts, compartment)
            for place in recipe.outside:
                note_output(store.runs, place, [phase.source])
            train(recipe, module, data, folder, card.steps, asdict(card))
        compartment = module.compartments[phase.source]
    if is_rank_zero():
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save_config(phase, folder / CONFIG)
        store.write_compartment(pack_compartment(compartment), card)
        discard_checkpoint(folder)
        clock.save(folder)
    return True
