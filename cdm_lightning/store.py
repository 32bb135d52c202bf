"""The compartment store: the folder that holds a backbone and its compartments, read and written as a whole or not."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cdm_lightning import exchange, ledger
from cdm_lightning.card import Card, model_card
from cdm_lightning.errors import BadInput, StoreError, UnknownSource
from cdm_lightning.tensor_files import (
    Json,
    checked_fields,
    file_sha256,
    json_text,
    pack,
    read_bytes,
    read_object,
    read_tensors,
    remove_unfinished,
    unpack,
    write_atomic,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 2
BACKBONE = "backbone.safetensors"
COMPARTMENT = "compartment.safetensors"
CARD = "card.json"
README = "README.md"
COMPARTMENT_FILES = (COMPARTMENT, CARD, README)
RUNS = "runs"
UNFINISHED = "unfinished.yaml"  # configuration of a training, or of a validation, that has not ended
CONFIG = "config.yaml"  # in the runs of a phase: of what is stored
EXCLUSIONS = "exclusions"
LEDGER = "ledger.jsonl"
LOCK = "compartments.lock"
INFO = "store.json"
NAME = re.compile(r"[a-z][a-z0-9_-]*")
PUBLIC = "public"  # under this name the ledger pins store.json, and so all that was fitted on public
RESERVED = frozenset(
    {PUBLIC, "monolith", "none", "all", "composed", "backbone", "null", "true", "false"}
)  # names with a meaning of their own


@dataclass(frozen=True)
class StoreInfo:
    """What store.json holds. It names no source: the folder of compartments is the list."""

    format: int
    backbone_sha256: str
    image_shape: tuple[int, int, int]  # channel, height, width
    sigma_range: tuple[float, float]
    public_data_sha256: str


@dataclass(frozen=True)
class Store:
    """A store at a path. Only the compartments that are asked for are opened."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Self:
        """Return the store at `path`, made without a backbone if there is none.

        Raises:
            StoreError: `path` is not a folder.
        """
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is not a folder: a store is a folder, choose another --store")
        (path / "compartments").mkdir(parents=True, exist_ok=True)
        return cls(path)._recovered()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store at `path`.

        Raises:
            StoreError: there is no store.json, or it is damaged or of another format.
        """
        store = cls(path)
        _ = store.info
        return store._recovered()

    @property
    def info(self) -> StoreInfo:
        """Return the contents of store.json.

        Raises:
            StoreError: it is missing, damaged or of another format.
        """
        path = self.path / INFO
        if not path.exists():
            raise StoreError(
                f"no store in {self.path}: expected a folder with store.json; "
                f"make one with `python -m cdm_lightning fit --config CONFIG --store {self.path}`"
            )
        values = read_object(path)
        if values.get("format") != FORMAT_VERSION:
            raise StoreError(f"{path} has format {values.get('format')}, but this version reads {FORMAT_VERSION}")
        return StoreInfo(**checked_fields(values, StoreInfo, path))

    @property
    def runs(self) -> Path:
        """Return the folder of logs and checkpoints."""
        return self.path / RUNS

    def folder(self, source: str) -> Path:
        """Return the folder of a source's compartment, whether it exists or not."""
        return self.path / "compartments" / source

    def has_backbone(self) -> bool:
        """Return whether the store has a backbone; store.json is written last, so it says so."""
        return (self.path / INFO).exists()

    def write_backbone(
        self,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, Json],
        *,
        image_shape: tuple[int, int, int],
        sigma_range: tuple[float, float],
        public_sha256: str,
    ) -> None:
        """Write the backbone, its line in the ledger, then store.json, each as a whole or not.

        Args:
            tensors: any names, shapes and types.
            metadata: what else belongs to the backbone.
            image_shape: channel, height, width.
            sigma_range: the noise levels the backbone was trained on.
            public_sha256: data_sha256 of `public`.

        Raises:
            StoreError: the store has a backbone; another one would orphan its compartments.
        """
        if self.has_backbone():
            raise StoreError(f"{self.path} has a backbone, and its compartments fit no other: use another --store")
        for name in (BACKBONE, INFO):
            remove_unfinished(self.path / name)
        write_tensors(self.path / BACKBONE, tensors, metadata)
        sha256 = file_sha256(self.path / BACKBONE)
        info = StoreInfo(FORMAT_VERSION, sha256, image_shape, sigma_range, public_sha256)
        text = json_text(asdict(info)).encode()
        ledger.append(self.path / LEDGER, "added", PUBLIC, None, hashlib.sha256(text).hexdigest())
        write_atomic(self.path / INFO, text)

    def read_backbone(self) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
        """Return the tensors and the metadata of the backbone.

        Raises:
            StoreError: it is missing or not the one that store.json names.
        """
        path = self.path / BACKBONE
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != self.info.backbone_sha256:
            raise StoreError(f"{path} has changed since it was fitted (sha256 in store.json): restore it from a copy")
        return unpack(data, path)

    def sources(self) -> list[str]:
        """Return the names of the sources that have a compartment, sorted."""
        cards = (self.path / "compartments").glob(f"*/{CARD}")
        return sorted(card.parent.name for card in cards if not card.parent.name.startswith("."))

    def choose(self, sources: str | Sequence[str]) -> list[str]:
        """Return the chosen sources: `all` in sorted order, or a list (or names with commas) in its own order.

        Raises:
            UnknownSource: the store has no compartment of that source.
            BadInput: no source at all, or one source twice.
        """
        chosen = self.sources() if sources == "all" else names_of(sources)
        if not chosen:
            raise BadInput(f"no source chosen: name some of {', '.join(self.sources()) or 'none (the store is empty)'}")
        for source in chosen:
            self._require(source)
            if chosen.count(source) > 1:
                raise BadInput(f"source '{source}' is chosen {chosen.count(source)} times: name it once")
        return chosen

    def read_card(self, source: str) -> Card:
        """Return the card of a source.

        Raises:
            UnknownSource: the store has no compartment of that source.
            StoreError: the card is damaged or another source's.
        """
        self._require(source)
        path = self.folder(source) / CARD
        card = Card.read(path)
        if card.source != source:
            raise StoreError(f"{path} is the card of '{card.source}': rename the folder back, or fit '{source}' again")
        return card

    def read_compartment(self, source: str) -> tuple[dict[str, "Tensor"], Card]:
        """Return the tensors and the card of a source.

        Raises:
            UnknownSource: the store has no compartment of that source.
            StoreError: it is damaged or was fitted on another backbone.
        """
        self.read_card(source)
        return read_folder(self.folder(source), self.info.backbone_sha256)

    def has_compartment(self, source: str) -> bool:
        """Return whether every file of a compartment is there."""
        return all((self.folder(source) / name).is_file() for name in COMPARTMENT_FILES)

    def write_compartment(self, tensors: Mapping[str, "Tensor"], card: Card) -> None:
        """Add or replace the compartment of `card.source`, as a whole or not, and enter it in the ledger.

        Raises:
            BadInput: `card.source` is no name of a source.
        """
        source = card.source
        check_new_name(source)
        files = {
            COMPARTMENT: pack(tensors, bond(card)),
            CARD: card.to_json().encode(),
            README: model_card(card).encode(),
        }
        self.put_files(source, files)

    def put_files(self, source: str, files: Mapping[str, bytes]) -> None:
        """Add or replace the files of a compartment, as a whole or not, and enter it in the ledger."""
        with ledger.locked(self.path / LOCK):
            exchange.put(self.folder(source), files, COMPARTMENT, self.path / LEDGER)

    def remove_compartment(self, source: str) -> None:
        """Remove the compartment of a source, as a whole or not, and enter it in the ledger; nothing, if it is gone.

        Raises:
            BadInput: it is no name of a source.
        """
        check_name(source)
        with ledger.locked(self.path / LOCK):
            exchange.take_away(self.folder(source), COMPARTMENT, self.path / LEDGER)

    def forgotten_on(self, source: str) -> str | None:
        """Return the date on which a source was forgotten, None if it was not or came again since."""
        newest = ledger.last(self.path / LEDGER, source)
        return newest.date if newest is not None and newest.event == "forgotten" else None

    def gone(self) -> list[str]:
        """Return the sources that were forgotten and did not come again, sorted."""
        entries = ledger.newest(self.path / LEDGER).items()
        return sorted(source for source, newest in entries if newest.event == "forgotten")

    def compartments_sha256(self, sources: Sequence[str] | None = None) -> dict[str, str]:
        """Return the sha256 of compartment.safetensors by source, of all sources or of those that are named.

        Raises:
            UnknownSource: the store has no compartment of one of them.
        """
        chosen = self.sources() if sources is None else self.choose(sources)
        return {source: file_sha256(self.folder(source) / COMPARTMENT) for source in chosen}

    def tensors_sha256(self, sources: Iterable[str]) -> dict[str, str]:
        """Return the sha256 of compartment.safetensors by source, without sources that have none."""
        tensors = {source: self.folder(source) / COMPARTMENT for source in sources}
        return {source: file_sha256(path) for source, path in tensors.items() if path.is_file()}

    def _recovered(self) -> Self:
        for source in exchange.unfinished(self.path / "compartments"):
            with ledger.locked(self.path / LOCK):
                exchange.mend(self.folder(source), COMPARTMENT, self.path / LEDGER)
        return self

    def _require(self, source: str) -> None:
        """Raise UnknownSource unless the source is there; one of a thousand is found without a look at the others."""
        if not (NAME.fullmatch(source) and (self.folder(source) / CARD).is_file()):
            raise UnknownSource(source, self.sources(), f"the store {self.path}")


def read_folder(folder: Path, backbone_sha256: str) -> tuple[dict[str, "Tensor"], Card]:
    """Return the tensors and the card in the folder of a compartment.

    Raises:
        StoreError: it is damaged or was fitted on another backbone than this one.
    """
    card = Card.read(folder / CARD)
    if card.backbone_sha256 != backbone_sha256:
        raise StoreError(
            f"{folder} was fitted on another backbone ({card.backbone_sha256[:12]}, here {backbone_sha256[:12]}): fit "
            "it again on this store's or add it to its own"
        )
    tensors, metadata = read_tensors(folder / COMPARTMENT)
    if metadata != bond(card):
        raise StoreError(
            f"{folder} holds a card and tensors that do not belong together: restore it from a copy, or fit it again "
            "with --refit"
        )
    return tensors, card


def names_of(sources: str | Sequence[str]) -> list[str]:
    """Return the names in a list, or in a text with commas between them."""
    return [name.strip() for name in sources.split(",")] if isinstance(sources, str) else list(sources)


def check_name(source: str) -> None:
    """Raise BadInput unless this can be the name of a source."""
    if source == PUBLIC or not NAME.fullmatch(source):
        raise BadInput(
            f"'{source}' is no name of a source: expected a lower-case letter, then a-z, 0-9, _ and -, but not {PUBLIC}"
        )


def check_new_name(source: str) -> None:
    """Raise BadInput unless a compartment may be added under this name."""
    check_name(source)
    if source in RESERVED:
        raise BadInput(f"'{source}' cannot name a source: {', '.join(sorted(RESERVED))} are reserved; rename it")


def bond(card: Card) -> dict[str, Json]:
    """Return what the tensors of a compartment say of the card they belong to."""
    return {"card_sha256": hashlib.sha256(card.to_json().encode()).hexdigest()}
