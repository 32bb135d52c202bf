"""What must hold before anything is trained: usable data, and a store whose backbone is the configuration's."""

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.privacy import Privacy
from cdm_lightning.recipe import SourceData
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import file_sha256

PUBLIC = "public"
LEARNED_WITH = ("learning_rate", "optimizer", "ema_decay", "seed")  # of a backbone; told if another is asked for
PINNED = ("guide", "preconditioning", "rank", "sigma_switch", "steps")  # and all of `backbone`
log = logging.getLogger(__name__)


def check_data(
    data: SourceData, sources: list[str], needs_public: bool, private: AbstractSet[str] = frozenset()
) -> None:
    """Check every manifest and that no source is empty, before anything is trained.

    Whether a `private` source is empty may not show: it is released all the same.

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
        if source not in private and not data.class_counts(source):
            raise BadInput(
                f"source '{source}' has no training image left: leave it out of data.sources, or write its shards "
                "again with more images (`shards`, or another data.root)"
            )


def check_public_mix(module: CompartmentalizedDiffusion, data: SourceData) -> None:
    """Raise BadInput if `public` shall be mixed into the training of sources where that can have no clear meaning."""
    said = f"data.public_mix is {data.public_mix:g}, the share of public in the training of a prompt"
    if data.public_mix and module.hparams["compartment"] == "none":
        raise BadInput(f"{said}: choose model.compartment tokens, lora, head or full, or leave it 0")
    if data.public_mix and module.hparams["class_labels"]:
        raise BadInput(f"{said}, and public's images have no class of a source: leave it 0 with model.class_labels")


def check_steps(module: CompartmentalizedDiffusion, max_steps: int) -> None:
    """Raise BadInput if a prompt shall be trained for no step."""
    if module.hparams["compartment"] != "none" and max_steps < 1:
        raise BadInput(f"trainer.max_steps is {max_steps}; a prompt needs at least 1 training step")


def check_backbone(store: Store, module: CompartmentalizedDiffusion, data: SourceData) -> None:
    """Check that the store's backbone is the one that the configuration describes.

    Raises:
        StoreError: it differs, or `public` has changed since.
    """
    trained, asked = store.read_backbone()[1], backbone_settings(module, store.info.image_shape)
    stored, expected = _pinned(trained), _pinned(asked)
    for key in sorted(stored.keys() | expected.keys()):
        if stored.get(key) != expected.get(key):
            raise StoreError(
                f"the store {store.path} holds another backbone: its {key} is {stored.get(key)}, the configuration "
                f"says {expected.get(key)}; use the store's, or another --store"
            )
    if other := [key for key in LEARNED_WITH if trained.get(key) != asked.get(key)]:
        log.warning(
            "the backbone of %s stays as it is: it was trained with another %s", store.path, " and ".join(other)
        )
    if data.has_public() and data.data_sha256(PUBLIC) != store.info.public_data_sha256:
        raise StoreError(
            f"public has changed since the backbone in {store.path} was trained on it: restore it, or fit another "
            "--store"
        )


def backbone_settings(module: CompartmentalizedDiffusion, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return what the store notes of a backbone; it names no path, and only what is not usual."""
    kind, settings, weights = type(module.backbone), module.hparams, module.backbone.weights
    backbone = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": module.backbone.init_args}
    if weights is not None:
        backbone["weights_sha256"] = file_sha256(Path(weights))
    names = ["guide", "rank", "sigma_switch", "seed", "ema_decay"]
    if settings["preconditioning"] != "edm":
        names.append("preconditioning")
    if settings["optimizer"] != "adamw":
        names.append("optimizer")
    return {
        "backbone": backbone,
        "image_shape": list(image_shape),
        "steps": settings["backbone_steps"],
        "learning_rate": module.backbone_rate,
        **{name: settings[name] for name in names},
    }


def privacy_settings(privacy: Privacy, data: SourceData, trained: bool) -> dict[str, Any]:
    """Return what a backbone notes of privacy: that its drafts are like private ones; that `public` was filtered.

    If private sources have a trained prompt, less of their budget is for the drafts.
    """
    noted: dict[str, Any] = {}
    if (shares := privacy.shares(trained)) is not None:
        noted["privacy"] = {"epsilon": privacy.epsilon, "delta": privacy.delta}
        if trained:
            noted["privacy"]["mu_of_drafts"] = shares.form
    if data.public_is_filtered():
        noted["public_is_filtered"] = True
    return noted


def _pinned(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a backbone's settings that a configuration must agree with, with dotted keys."""
    flat = _flat(settings)
    return {key: value for key, value in flat.items() if key in PINNED or key.startswith("backbone.")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
