"""Backbone and compartments as the tensors of a store, and back."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone, freeze
from cdm_lightning.card import Card
from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import PRECONDITIONINGS, SIGMA_MAX
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.prompts import KINDS
from cdm_lightning.public import Public
from cdm_lightning.source_forms import class_form, closed_form_of
from cdm_lightning.store import Store

ALLOWED_PACKAGE = "cdm_lightning"
SCALARS = "public.scalars"  # of which the switch may be infinite


def pack_backbone(backbone: Backbone, public: Public) -> dict[str, Tensor]:
    """Return the tensors of `backbone.safetensors`; see `check_finite`."""
    tensors = _prefixed("network", backbone.state_dict()) | _prefixed("public", public.tensors())
    check_finite({name: tensor for name, tensor in tensors.items() if name != SCALARS}, "the backbone")
    return tensors


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise StoreError if a number that shall be stored is not finite: nothing could be sampled from it."""
    if name := not_finite(tensors):
        raise StoreError(
            f"{what} cannot be stored, since its {name} is not finite: look for images that are all alike, or choose "
            "lower learning rates, and fit it again"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a number that is not finite; None if all are."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def unpack_backbone(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> tuple[Backbone, Public]:
    """Return the frozen network and what was fitted on `public`.

    Raises:
        BadInput: the network's class is outside the allowed packages.
    """
    backbone = build_backbone(metadata["backbone"]["class_path"], metadata["backbone"]["init_args"])
    backbone.load_state_dict(_stripped("network", tensors))
    freeze(backbone)
    channels, height, width = metadata["image_shape"]
    return backbone, Public.from_tensors(_stripped("public", tensors), (channels, height, width))


def build_backbone(class_path: str, init_args: Mapping[str, Any]) -> Backbone:
    """Return a network of the class that a store names, with its own constructor arguments.

    Raises:
        BadInput: the class is no `Backbone`, or its package is neither ours nor named by `CDM_ALLOW`.
    """
    package, _, name = class_path.rpartition(".")
    allowed = {ALLOWED_PACKAGE, *os.environ.get("CDM_ALLOW", "").split(",")}
    if package.split(".")[0] not in allowed:
        raise BadInput(
            f"the store's backbone is of class '{class_path}', outside the allowed packages: if you trust it, set "
            f"CDM_ALLOW={package.split('.')[0]}"
        )
    kind = getattr(importlib.import_module(package), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise BadInput(f"the store's backbone is of class '{class_path}', which is no cdm_lightning.backbone.Backbone")
    return kind(**init_args)


def pack_compartment(compartment: Compartment) -> dict[str, Tensor]:
    """Return the tensors of `compartment.safetensors`; see `check_finite`."""
    tensors = _prefixed("fine", compartment.fine.tensors())
    if compartment.prompt is not None:
        tensors |= _prefixed("prompt", compartment.prompt.state_dict())
    for label, form in compartment.classes.items():
        tensors |= _prefixed(f"class.{label}", form.fine.tensors())
    check_finite(tensors, "the compartment")
    return tensors


def unpack_compartment(tensors: Mapping[str, Tensor], card: Card, backbone: Backbone, public: Public) -> Compartment:
    """Return the compartment that `tensors` came from; `backbone` and `public` are those that it was fitted on."""
    fine, by_class = fine_forms(tensors, card)
    classes = {label: class_form(form, card.class_counts[label], public) for label, form in by_class.items()}
    own, prompt = _stripped("prompt", tensors), None
    if own:
        prompt = KINDS[card.compartment].like(backbone, own)
        prompt.load_state_dict(own)
        freeze(prompt)
    closed_form = fine if card.epsilon is not None else closed_form_of(fine, card.n, public)
    return Compartment(card.n, closed_form, fine, prompt, classes, public_mix=card.public_mix)


def fine_forms(tensors: Mapping[str, Tensor], card: Card) -> tuple[Gaussians, dict[str, Gaussians]]:
    """Return the Gaussians that `tensors` hold, of the source and by class, as they are stored."""
    by_class = {label: own for label in card.class_counts if (own := _stripped(f"class.{label}", tensors))}
    forms = {label: Gaussians.from_tensors(own, card.image_shape) for label, own in by_class.items()}
    return Gaussians.from_tensors(_stripped("fine", tensors), card.image_shape), forms


def open_compartments(
    store: Store, sources: str | Sequence[str], *, sigma_switch: float | None, device: torch.device | str
) -> Compartments:
    """Open the backbone and the compartments asked for, and no other file.

    Args:
        store: where they lie.
        sources: `all`, or names.
        sigma_switch: the level above which denoisers are closed forms; by default the one that `public` was fitted for.
        device: where to put them.

    Raises:
        BadInput: an unknown source, a damaged file, or a switch above the noise range of a prompt.
    """
    chosen = store.choose(sources)
    tensors, metadata = store.read_backbone()
    backbone, public = unpack_backbone(tensors, metadata)
    switch = public.sigma_switch if sigma_switch is None else sigma_switch
    compartments = {source: _open_compartment(store, source, backbone, public, switch).to(device) for source in chosen}
    guided = metadata["guide"] == "closed_form"
    preconditioning = PRECONDITIONINGS[metadata.get("preconditioning", "edm")]
    return Compartments(backbone.to(device), compartments, public, guided, switch, preconditioning)


def _open_compartment(
    store: Store, source: str, backbone: Backbone, public: Public, sigma_switch: float
) -> Compartment:
    tensors, card = store.read_compartment(source)
    if card.sigma_range is not None and min(sigma_switch, SIGMA_MAX) > card.sigma_range[1]:
        raise StoreError(
            f"sigma_switch {sigma_switch:g} is above the noise range of source '{source}', whose prompt was trained "
            f"up to {card.sigma_range[1]:g}: choose a lower one, or fit the source again"
        )
    return unpack_compartment(tensors, card, backbone, public)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _stripped(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
