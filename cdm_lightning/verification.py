"""Whether a store is as its fits made it: every hash, the ledger's chain, the lineage of compartments, nothing else.

Neither torch nor lightning is needed. Logs and checkpoints in `runs` are not part of the model and are not looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from cdm_lightning import ledger
from cdm_lightning.card import Card, model_card
from cdm_lightning.errors import StoreError
from cdm_lightning.forgetting import PENDING
from cdm_lightning.private_runs import MARK
from cdm_lightning.releases import RELEASES
from cdm_lightning.store import (
    BACKBONE,
    CARD,
    COMPARTMENT,
    COMPARTMENT_FILES,
    EXCLUSIONS,
    INFO,
    LEDGER,
    LOCK,
    PUBLIC,
    README,
    RUNS,
    Store,
    bond,
)
from cdm_lightning.tensor_files import file_sha256, json_text, metadata_of, read_bytes

LISTS = (".json", ".json.tmp", PENDING, MARK)  # ends of what lies in exclusions
EXPECTED = (BACKBONE, INFO, LEDGER, LOCK, ledger.LEDGER_LOCK, "compartments", RUNS, EXCLUSIONS, RELEASES)


def faults(store: Store) -> list[str]:
    """Return what is wrong with a store, a sentence each that names the file; nothing, if it is as it was made."""
    found, newest = [*_ledger_faults(store), *_backbone_faults(store)], _newest(store)
    for source in _folders(store):
        found += _compartment_faults(store, source, newest.get(source))
    return found + [*_missing(store, newest), *_extra(store)]


def _ledger_faults(store: Store) -> Iterator[str]:
    try:
        ledger.verify(store.path / LEDGER)
    except StoreError as error:
        yield str(error)
        return
    newest = ledger.last(store.path / LEDGER, PUBLIC)
    if newest is None or newest.after != file_sha256(store.path / INFO):
        yield f"{store.path / INFO} is not the one that the ledger names"


def _backbone_faults(store: Store) -> Iterator[str]:
    path = store.path / INFO
    if read_bytes(path) != json_text(asdict(store.info)).encode():
        yield f"{path} is not as it was written"
    if not (store.path / BACKBONE).is_file():
        yield f"{store.path / BACKBONE} is missing"
    elif file_sha256(store.path / BACKBONE) != store.info.backbone_sha256:
        yield f"{store.path / BACKBONE} is not the one that store.json names"


def _compartment_faults(store: Store, source: str, newest: ledger.Entry | None) -> Iterator[str]:
    folder = store.folder(source)
    try:
        card = Card.read(folder / CARD)
        bound = metadata_of(read_bytes(folder / COMPARTMENT), folder / COMPARTMENT)
        texts = {CARD: card.to_json(), README: model_card(card)}
        changed = [name for name, text in texts.items() if read_bytes(folder / name) != text.encode()]
    except (StoreError, TypeError, ValueError, AttributeError) as error:
        yield str(error) if isinstance(error, StoreError) else f"{folder / CARD} is damaged ({error})"
        return
    yield from (f"{folder / name} is not as it was written" for name in changed)
    if card.source != source:
        yield f"{folder} holds that of '{card.source}'"
    if card.backbone_sha256 != store.info.backbone_sha256:
        yield f"{folder} was fitted on another backbone, {card.backbone_sha256[:12]}"
    if bound != bond(card):
        yield f"{folder} holds a card and tensors that do not belong together"
    if newest is None or newest.event == "forgotten":
        yield f"{folder} is there, but the ledger says that '{source}' {'was forgotten' if newest else 'never was'}"
    elif newest.after != file_sha256(folder / COMPARTMENT):
        yield f"{folder / COMPARTMENT} is not the one that the ledger names"


def _missing(store: Store, newest: Mapping[str, ledger.Entry]) -> Iterator[str]:
    """Yield what the ledger says is there, and is not."""
    for source in sorted(newest.keys() - {PUBLIC, *_folders(store)}):
        if newest[source].event != "forgotten":
            yield f"{store.folder(source)} is missing, and the ledger does not say that '{source}' was forgotten"


def _extra(store: Store) -> Iterator[str]:
    """Yield what lies in the store and does not belong there; links are never followed."""
    places = [path for path in store.path.iterdir() if path.name not in EXPECTED]
    for folder in (store.path / "compartments").glob("*"):
        inside = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else [folder]
        places += [path for path in inside if path.name not in COMPARTMENT_FILES or path.is_symlink()]
    places += [path for path in store.path.iterdir() if path.is_symlink()]
    if (store.path / EXCLUSIONS).is_dir():
        places += [path for path in (store.path / EXCLUSIONS).iterdir() if not path.name.endswith(LISTS)]
    for path in sorted(set(places)):
        yield f"{path} does not belong to the store"
    for lock in (LOCK, ledger.LEDGER_LOCK):
        if (store.path / lock).exists() and read_bytes(store.path / lock):
            yield f"{store.path / lock} should be empty"


def _folders(store: Store) -> list[str]:
    folder = store.path / "compartments"
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def _newest(store: Store) -> dict[str, ledger.Entry]:
    """Return the newest entry of every source; none of a ledger that cannot be read, of which is told elsewhere."""
    try:
        return ledger.newest(store.path / LEDGER)
    except StoreError:
        return {}
