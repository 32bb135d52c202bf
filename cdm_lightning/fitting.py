"""Fit: the backbone on `public` if the store has none, then each source from its own data alone, one after another."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.backbone import tensors_sha256
from cdm_lightning.card import Card
from cdm_lightning.compartments import Compartment
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.drafts import Drafts, PseudoSources
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import from_uint8
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import pack_backbone, pack_compartment, unpack_backbone
from cdm_lightning.phase import Clock, Phase
from cdm_lightning.public import Public, fit_public
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.seeding import stable_hash
from cdm_lightning.store import Store
from cdm_lightning.validation import validate_composed

FEW_IMAGES = 20
PUBLIC = "public"
PINNED = ("backbone.class_path", "backbone.init_args", "guide", "rank", "sigma_switch", "steps")
log = logging.getLogger(__name__)


def fit(recipe: Recipe, store_path: Path, refit: bool = False) -> Store:
    """Fit what is missing or changed, and return the store; a phase that is up to date is skipped.

    Args:
        recipe: makes module, data and trainer of each phase.
        store_path: the store, made if it is not there.
        refit: fit the chosen sources again even if nothing changed.

    Raises:
        BadInput: data, store or configuration cannot be used; the store stays as it was.
    """
    data = recipe.data()
    data.prepare()
    sources = data.chosen_sources()
    store = Store(store_path)
    check_data(data, sources, needs_public=not store.has_backbone())
    if store.has_backbone():
        check_backbone(store, recipe.module(), data)
    new_backbone = int(not Store.create(store_path).has_backbone())
    total = len(sources) + new_backbone
    if new_backbone:
        fit_backbone(recipe, store, Phase("backbone", PUBLIC, 1, total))
    for position, source in enumerate(sources, start=1 + new_backbone):
        phase = Phase("source", source, position, total)
        if fit_source(recipe, store, phase, refit):
            validate_composed(recipe, store, Phase("composed", source, position, total))
    return store


def check_data(data: SourceData, sources: list[str], needs_public: bool) -> None:
    """Check every manifest and that no source is empty, before anything is trained.

    Raises:
        BadInput: a shard differs from its manifest, a source is empty, or `public` is needed and not there.
    """
    if needs_public and not data.has_public():
        raise BadInput(
            "no public source: the backbone is trained on images that nobody owns; name their classes with "
            "data.public_classes, set data.public_fraction, or add a folder 'public' beside the sources"
        )
    for source in ([PUBLIC] if needs_public else []) + sources:
        data.verify(source)
        if not data.class_counts(source):
            raise BadInput(f"source '{source}' has no training image left: add images, or leave it out of data.sources")


def check_backbone(store: Store, module: CompartmentalizedDiffusion, data: SourceData) -> None:
    """Check that the store's backbone is the one that the configuration describes.

    Raises:
        StoreError: it differs, or `public` has changed since.
    """
    stored = store.read_backbone()[1]
    for key, expected in _flat(backbone_settings(module, store.info.image_shape)).items():
        found = _flat(stored).get(key)
        if key.startswith(PINNED) and found != expected:
            raise StoreError(
                f"the store {store.path} holds another backbone: its {key} is {found}, the configuration says "
                f"{expected}; use the store's, or another --store"
            )
    if data.has_public() and data.data_sha256(PUBLIC) != store.info.public_data_sha256:
        raise StoreError(
            f"public has changed since the backbone in {store.path} was trained on it: restore it, or fit another "
            "--store"
        )


def backbone_settings(module: CompartmentalizedDiffusion, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return what the store notes of a backbone."""
    kind, settings = type(module.backbone), module.hparams
    return {
        "backbone": {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": module.backbone.init_args},
        "image_shape": list(image_shape),
        "steps": settings["backbone_steps"],
        **{key: settings[key] for key in ("guide", "rank", "sigma_switch", "seed", "learning_rate", "ema_decay")},
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def fit_backbone(recipe: Recipe, store: Store, phase: Phase) -> None:
    """Fit all that depends on `public` alone, and store it."""
    module, data = recipe.module(), recipe.data()
    settings = module.hparams
    keys, images, labels = data.images(PUBLIC, "train")
    clock = Clock(phase)
    with clock.part("closed_forms", f"closed forms of {len(keys)} public images"):
        pseudo = PseudoSources.cut(from_uint8(images), keys, labels, settings["seed"])
        public, drafts = fit_public(
            pseudo, seed=settings["seed"], rank=settings["rank"], sigma_switch=settings["sigma_switch"]
        )
    module.begin_backbone(phase, public, drafts)
    with clock.part("training", f"{settings['backbone_steps']} training steps"):
        train(recipe, module, data, store.runs / "backbone", settings["backbone_steps"])
    channels, height, width = images.shape[1:]
    shape = (channels, height, width)
    store.write_backbone(
        pack_backbone(module.backbone, public),
        backbone_settings(module, shape) | recipe.training | {"torch": torch.__version__},
        image_shape=shape,
        sigma_range=(SIGMA_MIN, SIGMA_MAX),
        public_sha256=data.data_sha256(PUBLIC),
    )
    clock.save(store.runs / "backbone")


def fit_source(recipe: Recipe, store: Store, phase: Phase, refit: bool) -> bool:
    """Fit one source's compartment and store it; return whether there was anything to do."""
    module, data = recipe.module(), recipe.data()
    card = card_of(module, data, store, phase.source, recipe)
    if not refit and store.has_compartment(phase.source) and store.read_card(phase.source).inputs() == card.inputs():
        log.info("%s: up to date, skipped", phase.title)
        return False
    if card.n < FEW_IMAGES:
        log.warning("%s: only %d images; a closed form of so few may reveal them", phase.title, card.n)
    backbone, public = unpack_backbone(*store.read_backbone())
    keys, images, _ = data.images(phase.source, "train")
    x_0 = from_uint8(images)
    clock = Clock(phase)
    with clock.part("closed_form", f"closed form of {len(keys)} images"):
        seed = stable_hash(card.seed, phase.source, "closed form")
        closed_form = Gaussians.fit(
            x_0, seed=seed, public=public.closed_form, strength=public.strength, rank=public.rank
        )
    compartment = Compartment(card.n, closed_form)
    if card.steps:
        module.backbone.load_state_dict(backbone.state_dict())
        with clock.part("training", f"{card.steps} training steps"):
            prompt_drafts = drafts_of_source(x_0, keys, public)
            module.begin_source(phase, public, prompt_drafts)
            train(recipe, module, data, store.runs / "sources" / phase.source, card.steps)
        compartment = Compartment(card.n, closed_form, module.prompts.find(phase.source))
    store.write_compartment(pack_compartment(compartment), card)
    clock.save(store.runs / "sources" / phase.source)
    return True


def card_of(module: CompartmentalizedDiffusion, data: SourceData, store: Store, source: str, recipe: Recipe) -> Card:
    """Return the card that a fit of this source will have: known before anything is fitted."""
    settings, counts = module.hparams, data.class_counts(source)
    trained = settings["compartment"] != "none"
    if trained and recipe.max_steps < 1:
        raise BadInput(f"trainer.max_steps is {recipe.max_steps}; a prompt needs at least 1 training step")
    names = ("tokens", "prompt_learning_rate", "ema_decay")
    own = {"rank": settings["rank"]} | ({name: settings[name] for name in names} | recipe.training if trained else {})
    return Card(
        source=source,
        n=sum(counts.values()),
        class_counts=counts,
        data_sha256=data.data_sha256(source),
        seed=settings["seed"],
        steps=recipe.max_steps if trained else 0,
        compartment=settings["compartment"],
        sigma_range=(SIGMA_MIN, min(settings["sigma_switch"], SIGMA_MAX)) if trained else None,
        settings=own,
        backbone_sha256=store.info.backbone_sha256,
        image_shape=store.info.image_shape,
        torch_version=torch.__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


def drafts_of_source(x_0: Tensor, keys: list[str], public: Public) -> Drafts:
    """Return out-of-fold drafts of one source's own images: a prompt must not learn to trust drafts that saw them."""
    pseudo = PseudoSources.whole(x_0, keys)
    return Drafts.fit(pseudo, [public.closed_form], public.strength, public.rank, [max(pseudo.sizes())])


def train(recipe: Recipe, module: CompartmentalizedDiffusion, data: Any, folder: Path, steps: int) -> None:
    """Run one phase's own Trainer, from its start; check that it ran to its end and left the backbone alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe.save_config(module.phase, folder)
    data.open(module.phase.source)
    before = tensors_sha256(module.backbone)
    trainer = recipe.trainer(module.phase, folder, steps)
    trainer.fit(module, datamodule=data)
    if trainer.global_step != steps:
        raise RuntimeError(f"{module.phase.title}: training ended at step {trainer.global_step} of {steps}")
    if module.phase.kind == "source" and tensors_sha256(module.backbone) != before:
        raise RuntimeError(f"{module.phase.title}: training changed the frozen backbone")
