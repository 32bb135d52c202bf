"""What `store list`, `store show SOURCE` and `store verify` say, as text and as data; nothing is printed here."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdm_lightning.errors import StoreError
from cdm_lightning.privacy import together
from cdm_lightning.releases import cost_of
from cdm_lightning.store import COMPARTMENT, Store
from cdm_lightning.tensor_files import file_sha256
from cdm_lightning.text_tables import aligned
from cdm_lightning.verification import faults

COLUMNS = ("source", "n", "classes", "compartment", "prompt_parameters", "steps", "epsilon", "bytes")


def listing_data(store: Store) -> list[dict[str, Any]]:
    """Return one row per source, in sorted order: the columns of `store list`."""
    return [_row(store, source) for source in store.sources()]


def listing(store: Store) -> str:
    """Return the table of `store list`, or one sentence if the store is empty."""
    rows = listing_data(store)
    if not rows:
        return f"{store.path} has no compartment yet: `fit` adds them"
    table = aligned([COLUMNS, *([_cell(row[column]) for column in COLUMNS] for row in rows)])
    return "\n".join([table, *_private_together(store)])


def details_data(store: Store, source: str) -> dict[str, Any]:
    """Return the card of a source, the bytes of its folder and the sha256 of its tensors.

    Raises:
        UnknownSource: the store has no compartment of that source.
        StoreError: the card is damaged, or the tensors are missing.
    """
    card = store.read_card(source)
    folder = store.folder(source)
    return asdict(card) | {"bytes": _bytes(folder), "sha256": file_sha256(folder / COMPARTMENT)}


def details(store: Store, source: str) -> str:
    """Return what `store show SOURCE` says: a line per entry of `details_data`, with `key.inner` for inner entries."""
    return aligned([(key, _said(value)) for key, value in _flat(details_data(store, source)).items()])


def verification_data(store: Store) -> dict[str, Any]:
    """Return what `store verify` finds: sources, backbone, and what is wrong."""
    found = faults(store)
    return {"sources": store.sources(), "backbone_sha256": store.info.backbone_sha256, "faults": found}


def verification(found: dict[str, Any]) -> str:
    """Return what `store verify` says of a store that is as it was made.

    Raises:
        StoreError: it is not; names every fault.
    """
    if found["faults"]:
        raise StoreError("the store is not as it was made:\n" + "\n".join(f"  {fault}" for fault in found["faults"]))
    names = ", ".join(found["sources"]) or "none"
    return (
        f"as it was made: the backbone {found['backbone_sha256'][:12]}, the ledger and {len(found['sources'])} "
        f"compartments ({names}); nothing else is there but runs/, which is not looked at"
    )


def _row(store: Store, source: str) -> dict[str, Any]:
    card = store.read_card(source)
    cost = cost_of(store.path, card)
    epsilon = None if cost is None else cost.epsilon if math.isfinite(cost.epsilon) else "inf"
    own = {"classes": len(card.class_counts), "bytes": _bytes(store.folder(source)), "epsilon": epsilon}
    return {column: own[column] if column in own else getattr(card, column) for column in COLUMNS}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _private_together(store: Store) -> Iterator[str]:
    """Yield what the private sources cost together, if there are any."""
    all_of_them = together(cost_of(store.path, store.read_card(source)) for source in store.sources())
    if all_of_them is not None:
        yield (
            f"private sources together: epsilon {all_of_them.epsilon:.4g} at delta {all_of_them.delta:g} for an image "
            f"that one of them holds, {all_of_them.epsilon_of_all:.4g} for one that all of them hold"
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Return inner entries as `key.inner`, sorted inside their key."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        inner = {f"{key}.{name}": value[name] for name in sorted(value)} if isinstance(value, dict) else {key: value}
        flat.update(inner)
    return flat


def _said(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
