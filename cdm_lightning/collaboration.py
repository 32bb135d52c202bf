"""Working together without sharing data: the frozen backbone goes out, an owner fits at home, the compartment comes in.

A compartment from elsewhere is data of a stranger: it is read as tensors and JSON, never as code, and only taken if
hashes, card, lineage and shapes are those of a compartment on this very backbone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cdm_lightning.card import Card, model_card
from cdm_lightning.claim import claimed
from cdm_lightning.compartment import Compartment
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.gaussian_mechanism import mu_of
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.packing import fine_forms, not_finite, unpack_backbone, unpack_compartment
from cdm_lightning.public import Public
from cdm_lightning.releases import note_release
from cdm_lightning.store import CARD, COMPARTMENT_FILES, CONFIG, README, Store, check_new_name, read_folder

Taken = Literal["added", "replaced", "up to date"]
ROUNDING = 1e-3  # of what must be one, in float32


def export_backbone(store: Store, out: Path) -> Store:
    """Write a store with the same backbone, and all else that was fitted on `public`, and no compartment.

    Raises:
        StoreError: there is another store at `out`, or one that owners have fitted into.
    """
    if Store(out).has_backbone() and Store.open(out).info != store.info:
        raise StoreError(f"{out} holds a store with another backbone: choose another folder")
    if Store(out).has_backbone() and (Store(out).sources() or Store(out).runs.exists()):
        raise StoreError(
            f"{out} holds compartments or logs of owners, so it is not to be given away: choose another folder"
        )
    tensors, metadata = store.read_backbone()
    info, exported = store.info, Store.create(out)
    if not exported.has_backbone():
        exported.write_backbone(
            tensors,
            metadata,
            image_shape=info.image_shape,
            sigma_range=info.sigma_range,
            public_sha256=info.public_data_sha256,
        )
    return exported


def add_compartment(store: Store, folder: Path, replace: bool = False) -> tuple[str, Taken]:
    """Take a compartment that was fitted elsewhere on this store's backbone; its bytes stay what they are.

    Args:
        store: takes it.
        folder: the compartment, `STORE/compartments/SOURCE` of the other store.
        replace: whether it may take the place of another one of the same source.

    Returns:
        The name of the source, and what was done.

    Raises:
        BadInput: it is no compartment of this backbone, its place is taken, or another process writes it.
    """
    files = _files(folder)
    tensors, card = read_folder(folder, store.info.backbone_sha256)
    check_new_name(card.source)
    backbone, public = unpack_backbone(*store.read_backbone())
    try:
        fault = next(_faults(card, files, tensors, public, store), None)
        if fault is None and not _is_finite(unpack_compartment(tensors, card, backbone, public)):
            fault = "its closed form has a number that is not finite"
    except (KeyError, IndexError, ValueError, RuntimeError, StopIteration, TypeError) as error:
        why = " ".join(str(error).split())
        raise StoreError(f"{folder} does not hold the tensors that its card describes ({why}): fit it again") from error
    if fault is not None:
        raise StoreError(f"{folder} is no compartment of this store's backbone: {fault}; fit it again")
    with claimed(store.runs, card.source, "added"):
        return card.source, _taken(store, card, files, replace)


def _taken(store: Store, card: Card, files: Mapping[str, bytes], replace: bool) -> Taken:
    """Put the files of a compartment in their place, if it may be taken, and note what a private one has spent."""
    source, there = card.source, card.source in store.sources()
    if there:
        if all((store.folder(source) / name).read_bytes() == data for name, data in files.items()):
            return "up to date"
        if not replace:
            raise BadInput(f"the store has another compartment of source '{source}': --replace puts this one there")
    if card.epsilon is not None and card.delta is not None:
        note_release(store.path, source, mu_of(card.epsilon, card.delta - card.slack), card.slack)
    (store.runs / "sources" / source / CONFIG).unlink(missing_ok=True)  # of another fit: nobody knows this one's
    store.put_files(source, files)
    return "replaced" if there else "added"


def _files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the three files of a compartment.

    Raises:
        StoreError: a file is missing, too many, or a link.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if [path.name for path in found] != sorted(COMPARTMENT_FILES) or any(path.is_symlink() for path in found):
        raise StoreError(
            f"{folder} is no compartment: expected a folder with {', '.join(COMPARTMENT_FILES)} and nothing else; "
            "name STORE/compartments/SOURCE of the store it was fitted into"
        )
    return {path.name: path.read_bytes() for path in found}


def _faults(
    card: Card, files: Mapping[str, bytes], tensors: Mapping[str, Tensor], public: Public, store: Store
) -> Iterator[str]:
    for name, text in ((CARD, card.to_json()), (README, model_card(card))):
        if files[name] != text.encode():
            yield f"its {name} is not as a fit writes it"
    if card.image_shape != store.info.image_shape:
        yield f"its images have the shape {card.image_shape}, here {store.info.image_shape}"
    if card.n < 1 or (card.epsilon is None and sum(card.class_counts.values()) != card.n):
        yield f"its classes have {sum(card.class_counts.values())} images, its card says {card.n}"
    fine, by_class = fine_forms(tensors, card)
    for form in (fine, *by_class.values()):
        yield from _form_faults(form, public.rank)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            yield f"it holds a number that is not finite, in {name}"


def _is_finite(compartment: Compartment) -> bool:
    """Return whether the closed forms are, which were merged when the compartment was opened."""
    forms = [compartment.closed_form, *(own.closed_form for own in compartment.classes.values())]
    return all(not_finite(form.tensors()) is None for form in forms)


def _form_faults(form: Gaussians, rank: int) -> Iterator[str]:
    """Yield what a closed form of this rank cannot be."""
    clusters, dimension = len(form.log_share), form.shape[0] * form.shape[1] * form.shape[2]
    kept = min(rank, dimension - 1)
    expected = {
        "log_share": (clusters,),
        "mean": (clusters, dimension),
        "basis": (clusters, dimension, kept),
        "variance": (clusters, kept),
        "rest": (clusters,),
    }
    for name, tensor in form.tensors().items():
        if tuple(tensor.shape) != expected[name]:
            yield f"its closed form has {name} of shape {tuple(tensor.shape)}, expected {expected[name]}"
            return
        if tensor.dtype != torch.float32:
            yield f"its closed form has {name} of type {tensor.dtype}, expected torch.float32"
            return
        if not bool(torch.isfinite(tensor).all()):
            yield f"its closed form holds a number that is not finite, in {name}"
            return
    if abs(float(form.log_share.exp().sum()) - 1) > ROUNDING:
        yield "the shares of its clusters do not add up to 1"
    if bool((form.rest < 0).any()) or bool((form.variance < 0).any()):
        yield "its closed form has a negative variance"
