"""Whether a source is gone from a store: no trace, an unbroken ledger, and the bytes of a store that never had it.

Somebody who does not trust the owner of the store runs this with a store of their own to compare with, or lets it fit
every remaining source again, from its shards alone. Neither needs the source that is gone.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cdm_lightning import ledger
from cdm_lightning.card import ENVIRONMENT
from cdm_lightning.forgetting import traces
from cdm_lightning.store import BACKBONE, COMPARTMENT_FILES, CONFIG, EXCLUSIONS, INFO, LEDGER, Store, check_name
from cdm_lightning.tensor_files import file_sha256
from cdm_lightning.verification import faults


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds, and a sentence."""

    holds: bool
    said: str


def absence(store: Store, source: str) -> Iterator[Check]:
    """Yield what a store says of a source that should be gone.

    Raises:
        BadInput: it is no name of a source.
    """
    check_name(source)
    found = faults(store)
    yield Check(not found, "; ".join(found) or "the store is as its fits made it (store verify)")
    newest = ledger.last(store.path / LEDGER, source)
    said = "the ledger has no entry of it: it never was here"
    if newest is not None:
        said = f"the ledger says that it was {newest.event} on {newest.date}"
    yield Check(newest is None or newest.event == "forgotten", said)
    left = [str(path.relative_to(store.path)) for path in traces(store, source)]
    yield Check(not left, f"left of it: {', '.join(left)}" if left else "no file of the store is of it")


def comparison(store: Store, other: Store, source: str) -> Iterator[Check]:
    """Yield how a store compares, byte for byte, with one that never had the source.

    Bits may differ where the compartments were fitted with another version of torch, kind of CPU or number of threads;
    then the cards are compared: data, seed, steps, settings, backbone.
    """
    had = source in other.sources()
    yield Check(not had, f"{other.path} {'has a compartment of it too' if had else 'has no compartment of it'}")
    for name in (BACKBONE, INFO):
        same = file_sha256(store.path / name) == file_sha256(other.path / name)
        yield Check(same, f"{name} {'is the same' if same else 'differs: these stores cannot be compared'}")
    for own in store.sources():
        if (epsilon := store.read_card(own).epsilon) is not None:
            yield Check(
                True, f"{own}: private (epsilon {epsilon:g}): nobody has its noise, so its bytes are not compared"
            )
        elif own in other.sources():
            yield compared(store, other, own)
        else:
            yield Check(False, f"{own}: {other.path} has no compartment to compare it with")


def compared(store: Store, other: Store, source: str) -> Check:
    """Return whether a remaining compartment is that of the other store."""
    files = [[_bytes(one.folder(source) / name) for name in COMPARTMENT_FILES] for one in (store, other)]
    if None in files[0]:
        return Check(False, f"{source}: a file of its compartment is missing")
    if files[0] == files[1]:
        return Check(True, f"{source}: the same bytes")
    mine, theirs = store.read_card(source), other.read_card(source)
    elsewhere = [name for name in ENVIRONMENT if getattr(mine, name) != getattr(theirs, name)]
    if not elsewhere:
        return Check(False, f"{source}: its bytes differ, fitted with the same versions on the same kind of machine")
    differing = sorted(key for key, value in mine.inputs().items() if value != theirs.inputs()[key])
    if differing:
        return Check(False, f"{source}: it was fitted from something else, its card differs in {', '.join(differing)}")
    made = ", ".join(f"{name} {getattr(mine, name)} and {getattr(theirs, name)}" for name in elsewhere)
    return Check(True, f"{source}: the same data, seed, steps and settings; bits may differ ({made})")


def fitted_again(store: Store, place: Path, fit: Callable[[Path, Store, str], None]) -> Store:
    """Return a store at `place` with the same backbone and every remaining source fitted again, but for private ones.

    Samples that were forgotten stay forgotten.

    Args:
        store: whose sources are fitted.
        place: a folder that is not there yet.
        fit: fits one source into a store, with the configuration in a file.

    Raises:
        BadInput: the configuration of a source is not there, or it cannot be fitted.
    """
    again = Store.create(place)
    for name in (BACKBONE, INFO):
        shutil.copy(store.path / name, place / name)
    (place / EXCLUSIONS).mkdir()
    for path in (store.path / EXCLUSIONS).glob("*.json"):
        shutil.copy(path, place / EXCLUSIONS)
    for source in store.sources():
        if store.read_card(source).epsilon is not None:
            continue  # that would be another release
        fit(store.runs / "sources" / source / CONFIG, again, source)
    return again


def as_json(checks: list[Check]) -> list[dict[str, object]]:
    """Return checks as JSON."""
    return [asdict(check) for check in checks]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
