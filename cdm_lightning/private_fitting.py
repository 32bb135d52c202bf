"""The fit of a private source: a release of its images, with noise from a secret; nothing else of them is stored.

The closed form comes first. A prompt, if one is asked for, is trained with the rest of the budget, guided by that
closed form: drafts from the images themselves would give them away.
"""

import logging
from pathlib import Path

from torch import Tensor

from cdm_lightning.card import Card
from cdm_lightning.card_making import PrivateFit, private_card, sampling_rate
from cdm_lightning.compartment import Compartment
from cdm_lightning.errors import BadInput, StoreError, UnknownSource
from cdm_lightning.forgetting import pending_of
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import from_uint8
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import check_finite, pack_compartment, unpack_backbone
from cdm_lightning.phase import Phase
from cdm_lightning.privacy import Privacy, Shares
from cdm_lightning.private_gaussians import Frame, fit_private
from cdm_lightning.private_runs import announce_record, keep_record, learned_others, mark_private
from cdm_lightning.private_training import (
    RELEASED,
    check_memory,
    check_prompt,
    keep_form,
    kept_form,
    steps_of,
    train_private,
    training_folder,
    typical_norm,
)
from cdm_lightning.ranks import is_rank_zero
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.releases import note_release, released
from cdm_lightning.secret_noise import SecretNoise, read_secret
from cdm_lightning.store import CONFIG, Store
from cdm_lightning.subsampled_gaussian import multiplier_for
from cdm_lightning.training import discard_checkpoint
from cdm_lightning.versions import code_sha256

FEW_IMAGES = 20  # released ones
FILTERED = (
    "was filtered (shards --drop-from-public, or data.exclude of public images), maybe by what the sources hold, and "
    "then it tells of their images: take all of public, and fit another --store"
)
log = logging.getLogger(__name__)


def check_privacy(recipe: Recipe, module: CompartmentalizedDiffusion, data: SourceData, sources: list[str]) -> None:
    """Check, before anything is fitted, that what shall be private can be.

    Raises:
        BadInput: a setting would let more leave a source than its release.
        UnknownSource: `privacy.sources` names what is not there.
    """
    privacy = recipe.privacy
    for source in privacy.sources or []:
        if source not in data.available_sources():
            raise UnknownSource(source, data.available_sources(), "privacy.sources")
    private = [source for source in sources if privacy.covers(source)]
    if not private:
        return
    settings, said = module.hparams, f"source '{private[0]}' is private (privacy.epsilon {privacy.epsilon:g})"
    if settings["compartment"] != "none":
        check_prompt(recipe, module, data, said)
    if settings["class_labels"]:
        raise BadInput(f"{said}, and its classes would be released without privacy: leave model.class_labels false")
    if data.public_is_filtered():
        raise BadInput(f"{said}, but public {FILTERED}")
    given = module.backbone.init_args
    numbers = given["channels"] * given["image_size"] ** 2
    for source in private:
        check_memory(source, sum(data.class_counts(source).values()), numbers)
    read_secret(privacy.secret_file)


def check_private_store(privacy: Privacy, store: Store, sources: list[str], refit: bool) -> None:
    """Check that a store with a backbone can take what shall be fitted; with `refit`, in the place of damaged cards.

    Raises:
        BadInput: its backbone may tell of a private source, or a private compartment would lose its privacy.
    """
    private = [source for source in sources if privacy.covers(source)]
    if private and store.read_backbone()[1].get("public_is_filtered"):
        raise BadInput(f"source '{private[0]}' is private, but the backbone of {store.path} {FILTERED}")
    for source in sources:
        if source not in private and _is_private(store, source, refit):
            raise BadInput(
                f"source '{source}' is private in {store.path}, and would be fitted without privacy: say "
                "privacy.epsilon, or forget it first"
            )


def _is_private(store: Store, source: str, refit: bool) -> bool:
    """Return whether the store's compartment of a source is a release; if none can be read, whether ever one was.

    Whoever forgets a source by hand makes a new beginning; a compartment that is damaged, or that is to be fitted again
    since an image left, stays as private as it was.
    """
    if not store.has_compartment(source):
        begun_anew = store.forgotten_on(source) is not None and not pending_of(store, source).exists()
        return bool(released(store.path, source).mus) and not begun_anew
    try:
        return store.read_card(source).epsilon is not None
    except StoreError:
        if not refit:
            raise
        return bool(released(store.path, source).mus)


def fit_private_source(recipe: Recipe, store: Store, phase: Phase, refit: bool) -> bool:
    """Release a private source's closed form and store it; return whether there was anything to do.

    Raises:
        BadInput: delta is above 1 / n, for the released n.
    """
    module, data, source = recipe.module(), recipe.data(), phase.source
    if not refit and store.has_compartment(source) and not _changed(recipe, module, data, store, source):
        log.info("%s: up to date, skipped", phase.title)
        return False
    if store.has_compartment(source) and not _is_private(store, source, refit):
        log.warning("%s: the store had a compartment of it without privacy; copies of that tell more", phase.title)
    if (forgotten := store.forgotten_on(source)) is not None:
        log.warning("%s: it was forgotten on %s, and is learned again", phase.title, forgotten)
    if is_rank_zero():
        card = _release(recipe, module, data, store, phase)
        if card.n < FEW_IMAGES:
            log.warning("%s: only about %d images; of so few hardly more than noise is released", phase.title, card.n)
        what = f"closed form of about {card.n} images" + (f", {card.steps} private steps" if card.steps else "")
        log.info("%s: %s, epsilon %.4g spent", phase.title, what, card.epsilon)
    return True


def _changed(recipe: Recipe, module: CompartmentalizedDiffusion, data: SourceData, store: Store, source: str) -> bool:
    """Return whether settings, or as far as is known the images, are others than those of the compartment."""
    card = store.read_card(source)
    if card.epsilon is None:
        return True
    same = private_card(module, store, source, recipe, PrivateFit.of(card))
    return same.inputs() != card.inputs() or learned_others(store, source, data.data_sha256(source))


def _release(recipe: Recipe, module: CompartmentalizedDiffusion, data: SourceData, store: Store, phase: Phase) -> Card:
    """Release, train, store and note; return the card."""
    privacy, source, trained = recipe.privacy, phase.source, module.hparams["compartment"] != "none"
    shares, secret = privacy.shares(trained), read_secret(privacy.secret_file)
    assert privacy.epsilon is not None
    assert shares is not None
    _, images, _ = data.images(source, "train")
    data_sha256, own = data.data_sha256(source), mark_private(store, source)
    settings = private_card(module, store, source, recipe, PrivateFit(1, privacy.epsilon, 0, 0.0)).to_json()
    named: dict[str, str | int | float] = {"images": data_sha256, "settings": settings, "mu": shares.form}
    named["code"] = code_sha256()
    if _is_finished(store, source):
        _discard_training(store, source, own)
    kept = kept_form(own, named, store.info.image_shape) if trained else None
    form, n = kept or _released_form(
        recipe, store, phase, images, SecretNoise(secret, named), shares, module.hparams["clusters"]
    )
    if trained:
        keep_form(own, form, n, named)
    spent = released(store.path, source)
    multiplier = (
        multiplier_for(sampling_rate(recipe, n), recipe.max_steps, shares.prompt, shares.slack) if trained else None
    )
    epsilon = privacy.epsilon if len(spent.mus) == 1 else spent.epsilon(privacy.delta)
    compartment = Compartment(n, form, form)
    norm = (privacy.clipping_norm or typical_norm(recipe, store, phase, compartment)) if trained else None
    fit = PrivateFit(n, epsilon, len(spent.mus), spent.slack, multiplier, norm)
    card = private_card(module, store, source, recipe, fit)
    if trained:
        steps = steps_of(card, shares, spent, secret, named | {"card": card.to_json(), "device": recipe.device})
        compartment = train_private(recipe, store, phase, compartment, card, images, steps)
    recipe.save_config(phase, own / CONFIG)
    announce_record(store, card, data_sha256)
    store.write_compartment(pack_compartment(compartment), card)
    keep_record(store, source, data_sha256)
    _discard_training(store, source, own)
    return card


def _is_finished(store: Store, source: str) -> bool:
    """Return whether the newest release of a source is in its compartment: what is kept of it is used no more."""
    if not store.has_compartment(source):
        return False
    try:
        count = store.read_card(source).settings.get("releases", 0)
    except StoreError:
        return True  # so it counts as one more
    return isinstance(count, int) and count >= len(released(store.path, source).mus)


def _discard_training(store: Store, source: str, own: Path) -> None:
    (own / RELEASED).unlink(missing_ok=True)
    discard_checkpoint(training_folder(store, source))


def _released_form(
    recipe: Recipe, store: Store, phase: Phase, images: Tensor, noise: SecretNoise, shares: Shares, clusters: int
) -> tuple[Gaussians, int]:
    """Release the closed form of images, and note what this fit spends; return it and the released number.

    Raises:
        BadInput: delta is above 1 / n, or earlier prompts have used it up.
    """
    privacy, source = recipe.privacy, phase.source
    _, public = unpack_backbone(*store.read_backbone())
    if released(store.path, source).slack + shares.slack >= privacy.delta:
        raise BadInput(
            f"the prompts that source '{source}' has released before have used up privacy.delta {privacy.delta:g}: "
            "choose a larger one, or model.compartment none"
        )
    form, n = fit_private(
        from_uint8(images),
        Frame.of(public.closed_form),
        mu=shares.form,
        noise=noise.normal,
        rank=public.rank,
        clusters=clusters,
    )
    check_finite(form.tensors(), f"source '{source}'")
    note_release(store.path, source, shares.mu, shares.slack)
    if privacy.delta * n > 1:
        raise BadInput(
            f"privacy.delta is {privacy.delta:g}, above 1 / n of source '{source}' (about {n} images): such a delta "
            f"would allow to publish one image; choose at most {1 / (10 * n):.0e}"
        )
    return form, n
