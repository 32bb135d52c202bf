"""What the owner of a private source keeps beside the store: marked as private, and never to be published.

The hash of the images that were released lies here, not in the compartment: whoever has a guess of all images could
check it. By it a later fit knows whether anything has changed.
"""

import hashlib
from pathlib import Path

from cdm_lightning.card import Card
from cdm_lightning.store import CARD, COMPARTMENT, EXCLUSIONS, Store
from cdm_lightning.tensor_files import file_sha256, json_text, read_object, write_atomic

MARK = "PRIVATE"
RECORD = "private.json"
ANNOUNCED = "private.next.json"
MARK_TEXT = """This folder is its owner's. What lies in it is not covered by differential privacy: logs, lists
of forgotten images, hashes of images. Do not publish it, and do not hand it on with the store.
"""


def mark_private(store: Store, source: str) -> Path:
    """Mark the folders of a store that are no part of what may be published; return the source's."""
    own = store.runs / "sources" / source
    for folder in (store.runs, own):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(MARK_TEXT, encoding="utf-8")
    if (store.path / EXCLUSIONS).is_dir():
        (store.path / EXCLUSIONS / MARK).write_text(MARK_TEXT, encoding="utf-8")
    return own


def announce_record(store: Store, card: Card, data_sha256: str) -> None:
    """Note which images a compartment was made of before it is in place; no two releases have the same card."""
    record = {"data_sha256": data_sha256, "card_sha256": hashlib.sha256(card.to_json().encode()).hexdigest()}
    write_atomic(mark_private(store, card.source) / ANNOUNCED, json_text(record).encode())


def keep_record(store: Store, source: str, data_sha256: str) -> None:
    """Note which images the compartment of a private source was made of, for its owner alone."""
    record = {"data_sha256": data_sha256, "compartment_sha256": file_sha256(store.folder(source) / COMPARTMENT)}
    own = mark_private(store, source)
    write_atomic(own / RECORD, json_text(record).encode())
    (own / ANNOUNCED).unlink(missing_ok=True)


def learned_others(store: Store, source: str, data_sha256: str) -> bool:
    """Return whether a compartment is known to have learned other images than those of this hash."""
    return learned_data(store, source) not in (None, data_sha256)


def learned_data(store: Store, source: str) -> str | None:
    """Return the data_sha256 of the images behind a compartment; of a private one only its owner's record knows it.

    Raises:
        StoreError: the card or the record is damaged.
    """
    card = store.read_card(source)
    if card.epsilon is None:
        return card.data_sha256
    own, folder = store.runs / "sources" / source, store.folder(source)
    for name, key, file in ((RECORD, "compartment_sha256", COMPARTMENT), (ANNOUNCED, "card_sha256", CARD)):
        record = read_object(own / name) if (own / name).exists() else {}
        if record.get(key) == file_sha256(folder / file):
            return str(record.get("data_sha256"))
    return None
