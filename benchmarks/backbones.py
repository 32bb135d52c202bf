"""Stores that begin with the backbone of another one: as it is, or with a network or a setting replaced."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdm_lightning.backbone import Backbone
from cdm_lightning.fit_checks import PINNED
from cdm_lightning.packing import pack_backbone
from cdm_lightning.public import Public
from cdm_lightning.store import BACKBONE, Store

LINKED = ("image_size", "channels", "guided")  # arguments of a backbone that follow from other options
OPTIONS = {"steps": "backbone_steps"}  # of `fit`, where a setting has another name


def options_of(store: Path) -> list[str]:
    """Return the options of `fit` by which any configuration agrees with the backbone of a store."""
    settings = Store.open(store).read_backbone()[1]
    network = settings["backbone"]
    sizes = {f"backbone.init_args.{name}": one for name, one in network["init_args"].items() if name not in LINKED}
    others = {OPTIONS.get(name, name): settings[name] for name in PINNED if name in settings}
    chosen = {"backbone": network["class_path"], **sizes, **others}
    return [word for name, value in chosen.items() for word in (f"--model.{name}", _written(value))]


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def copy_backbone(store: Path, place: Path) -> None:
    """Begin a store with a copy of another one's backbone, without compartments; what is there stays."""
    place.mkdir(parents=True, exist_ok=True)
    for name in (BACKBONE, "store.json"):
        if not (place / name).exists():
            shutil.copy(store / name, place / name)


def write_backbone_like(
    store: Store, place: Path, network: Backbone, public: Public, settings: Mapping[str, Any]
) -> None:
    """Begin a store with a network and what was fitted on the `public` of another store, whose settings it takes.

    Args:
        store: the other one.
        place: the folder of the new one.
        network: of the new one.
        public: of the new one.
        settings: those that differ.
    """
    Store.create(place).write_backbone(
        pack_backbone(network, public),
        {**store.read_backbone()[1], **settings},
        image_shape=store.info.image_shape,
        sigma_range=store.info.sigma_range,
        public_sha256=store.info.public_data_sha256,
    )
