"""The compartment store: the folder that holds a backbone and its compartments, read and written as a whole or not."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from cdm_lightning import ledger
from cdm_lightning.errors import BadInput, StoreError, UnknownSource

if TYPE_CHECKING:
    from torch import Tensor

JsonScalar: TypeAlias = str | int | float | bool | None
Json: TypeAlias = "JsonScalar | Sequence[Json] | Mapping[str, Json]"

FORMAT_VERSION = 1
BACKBONE = "backbone.safetensors"
COMPARTMENT = "compartment.safetensors"
CARD = "card.json"
ENVIRONMENT = ("torch_version", "cpu_capability", "threads")  # on a card, but no reason to fit again
FIT_AGAIN = "restore it from a copy or fit it again"


@dataclass(frozen=True)
class Card:
    """What a compartment was fitted on and how, from its own source alone: no other source, path, date or host."""

    source: str
    n: int  # distinct training samples
    class_counts: dict[str, int]
    data_sha256: str
    seed: int
    steps: int
    compartment: str  # what was trained: none or tokens
    sigma_range: tuple[float, float] | None  # the noise levels the prompt was trained on; None without a prompt
    settings: dict[str, JsonScalar]
    backbone_sha256: str
    image_shape: tuple[int, int, int]  # channel, height, width
    torch_version: str
    cpu_capability: str
    threads: int

    def inputs(self) -> dict[str, Any]:
        """Return what decides whether a compartment is up to date: all but the environment it was fitted in."""
        return {key: value for key, value in asdict(self).items() if key not in ENVIRONMENT}

    def to_json(self) -> str:
        """Return the text of card.json: sorted keys, so equal cards are equal bytes."""
        return _json_text(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a card.json.

        Raises:
            StoreError: the file is missing or no JSON object, or a key is missing or unknown.
        """
        return cls(**_checked(_read_object(path), cls, path))


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
        path = self.path / "store.json"
        if not path.exists():
            raise StoreError(
                f"no store in {self.path}: expected a folder with store.json; "
                f"make one with `python -m cdm_lightning fit --config CONFIG --store {self.path}`"
            )
        values = _read_object(path)
        if values.get("format") != FORMAT_VERSION:
            raise StoreError(f"{path} has format {values.get('format')}, but this version reads {FORMAT_VERSION}")
        return StoreInfo(**_checked(values, StoreInfo, path))

    @property
    def runs(self) -> Path:
        """Return the folder of logs and checkpoints."""
        return self.path / "runs"

    def folder(self, source: str) -> Path:
        """Return the folder of a source's compartment, whether it exists or not."""
        return self.path / "compartments" / source

    def has_backbone(self) -> bool:
        """Return whether the store has a backbone; store.json is written last, so it says so."""
        return (self.path / "store.json").exists()

    def write_backbone(
        self,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, Json],
        *,
        image_shape: tuple[int, int, int],
        sigma_range: tuple[float, float],
        public_sha256: str,
    ) -> None:
        """Write the backbone, then store.json, each as a whole or not.

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
        write_tensors(self.path / BACKBONE, tensors, metadata)
        sha256 = file_sha256(self.path / BACKBONE)
        info = StoreInfo(FORMAT_VERSION, sha256, image_shape, sigma_range, public_sha256)
        _write_atomic(self.path / "store.json", _json_text(asdict(info)).encode())

    def read_backbone(self) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
        """Return the tensors and the metadata of the backbone.

        Raises:
            StoreError: it is missing or not the one that store.json names.
        """
        path = self.path / BACKBONE
        data = _read_bytes(path)
        if hashlib.sha256(data).hexdigest() != self.info.backbone_sha256:
            raise StoreError(f"{path} has changed since it was fitted (sha256 in store.json): restore it from a copy")
        return _unpack(data, path)

    def sources(self) -> list[str]:
        """Return the names of the sources that have a compartment, sorted."""
        cards = (self.path / "compartments").glob(f"*/{CARD}")
        return sorted(card.parent.name for card in cards if not card.parent.name.startswith("."))

    def choose(self, sources: Literal["all"] | list[str]) -> list[str]:
        """Return the chosen sources: all in sorted order, or a list in its own order.

        Raises:
            UnknownSource: the store has no compartment of that source.
            BadInput: no source at all, or one source twice.
        """
        known = self.sources()
        chosen = known if sources == "all" else list(sources)
        if not chosen:
            raise BadInput(f"no source chosen: name some of {', '.join(known) or 'none (the store is empty)'}")
        for source in chosen:
            self._require(source, known)
            if chosen.count(source) > 1:
                raise BadInput(f"source '{source}' is chosen {chosen.count(source)} times: name it once")
        return chosen

    def read_card(self, source: str) -> Card:
        """Return the card of a source.

        Raises:
            UnknownSource: the store has no compartment of that source.
            StoreError: the card is damaged or another source's.
        """
        self._require(source, self.sources())
        path = self.folder(source) / CARD
        card = Card.read(path)
        if card.source != source:
            raise StoreError(f"{path} is the card of '{card.source}': rename the folder back, or fit '{source}' again")
        return card

    def read_compartment(self, source: str) -> tuple[dict[str, "Tensor"], dict[str, Any], Card]:
        """Return the tensors, the metadata and the card of a source.

        Raises:
            UnknownSource: the store has no compartment of that source.
            StoreError: it is damaged or was fitted on another backbone.
        """
        card, own = self.read_card(source), self.info.backbone_sha256
        if card.backbone_sha256 != own:
            raise StoreError(
                f"{self.folder(source)} was fitted on another backbone ({card.backbone_sha256[:12]}, here "
                f"{own[:12]}): fit it again on this store's or add it to its own"
            )
        return *read_tensors(self.folder(source) / COMPARTMENT), card

    def write_compartment(
        self, source: str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json], card: Card, readme: str
    ) -> None:
        """Add or replace a compartment, as a whole or not, and enter it in the ledger.

        Raises:
            BadInput: `source` is no name of a source.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", source):
            raise BadInput(f"'{source}' is no name of a source: expected a lower-case letter, then a-z, 0-9, _ and -")
        assert card.source == source
        with ledger.locked(self.path / "compartments.lock"):
            self._tidy(source)
            before = self._tensors_sha256(source)
            try:
                self._write_folder(self._aside(source, "tmp"), tensors, metadata, card, readme)
                self._swap_in(source)
            finally:
                self._tidy(source)
            event: ledger.Event = "refitted" if before else "added"
            ledger.append(self.path / "ledger.jsonl", event, source, before, self._tensors_sha256(source))

    def _write_folder(
        self, folder: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json], card: Card, readme: str
    ) -> None:
        folder.mkdir(parents=True)
        _write_synced(folder / COMPARTMENT, _pack(tensors, metadata))
        _write_synced(folder / CARD, card.to_json().encode())
        _write_synced(folder / "README.md", readme.encode())

    def _swap_in(self, source: str) -> None:
        if self.folder(source).exists():
            os.rename(self.folder(source), self._aside(source, "old"))
        os.rename(self._aside(source, "tmp"), self.folder(source))

    def _tidy(self, source: str) -> None:
        """Undo or finish a write that was cut short: the lock must be held.

        A new folder beside an old one means that the swap was cut between its two renames: the old one comes back.
        Without the new folder the swap was done, and what is left of the old one is deleted.
        """
        old, new = (list(self._asides(source, kind)) for kind in ("old", "tmp"))
        if old and new and not self.folder(source).exists():
            os.rename(old.pop(), self.folder(source))
        for folder in old + new:
            shutil.rmtree(folder)

    def _recovered(self) -> Self:
        for source in sorted({folder.name.split(".")[1] for folder in self._asides("*", "old")}):
            with ledger.locked(self.path / "compartments.lock"):
                self._tidy(source)
        return self

    def _aside(self, source: str, kind: str) -> Path:
        return self.folder(f".{source}.{kind}-{os.getpid()}")

    def _asides(self, source: str, kind: str) -> list[Path]:
        return sorted((self.path / "compartments").glob(f".{source}.{kind}-*"))

    def _tensors_sha256(self, source: str) -> str | None:
        path = self.folder(source) / COMPARTMENT
        return file_sha256(path) if path.exists() else None

    def _require(self, source: str, known: Sequence[str]) -> None:
        if source not in known:
            raise UnknownSource(source, known, f"the store {self.path}")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json]) -> None:
    """Write tensors of any shape and type with metadata, as a whole or not; equal content gives equal bytes."""
    _write_atomic(path, _pack(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata that `write_tensors` wrote.

    Raises:
        StoreError: the file is missing, or a byte of it changed.
    """
    return _unpack(_read_bytes(path), path)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_card(card: Card) -> str:
    """Return the README.md of a compartment for people: a function of the card alone."""
    return f"""# Compartment `{card.source}`

One compartment of a compartmentalized diffusion model: what was learned from the data of the source
`{card.source}`, and from no other source. It works with the backbone `{card.backbone_sha256[:12]}` only.

## Data
{card.n} distinct training images of shape {"x".join(str(side) for side in card.image_shape)} (channel, height, width).

| class | images |
|---|---|
{_rows(card.class_counts)}

## How it was made
A closed form (Gaussians per cluster) was fitted. {_training(card)} Seed {card.seed}.

| setting | value |
|---|---|
{_rows(card.settings)}

## Forgetting it
Delete this folder. Nothing else in the store depends on this source's data: the backbone and the other compartments
are what they would be if it had never been there.

## Privacy
Statistics are not anonymous: a cluster of a few images is nearly those images. Without differential privacy a
compartment may reveal the images it was made from. Treat this folder as you treat the images.
"""


def _training(card: Card) -> str:
    if card.sigma_range is None:
        return "No prompt was trained."
    low, high = card.sigma_range
    return f"A prompt ({card.compartment}) was trained for {card.steps} steps on noise levels {low:g} to {high:g}."


def _rows(values: Mapping[str, JsonScalar]) -> str:
    return "\n".join(f"| {key} | {values[key]} |" for key in sorted(values))


def _pack(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json]) -> bytes:
    """Return a safetensors file. Its one metadata key holds sorted JSON, since several would come in random order."""
    import torch
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    envelope = {"metadata": metadata, "sha256": _content_sha256(save(own), metadata)}
    return save(own, metadata={"cdm": _compact(envelope)})


def _unpack(data: bytes, path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    from safetensors.torch import load

    try:
        envelope = json.loads(_split(data)[0]["__metadata__"]["cdm"])
        intact = envelope["sha256"] == _content_sha256(data, envelope["metadata"])
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise StoreError(f"{path} is damaged, or not a file of a store: {FIT_AGAIN}")
    return load(data), envelope["metadata"]


def _split(data: bytes) -> tuple[Any, bytes]:
    """Split a safetensors file into its header (JSON) and its body."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _content_sha256(data: bytes, metadata: Mapping[str, Json]) -> str:
    """Return the sha256 of all that a safetensors file says: names, types, shapes, metadata and numbers."""
    header, body = _split(data)
    header.pop("__metadata__", None)
    return hashlib.sha256(_compact([header, metadata]).encode() + body).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _json_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=2) + "\n"


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise StoreError(f"{path} is missing: {FIT_AGAIN}")
    return path.read_bytes()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): {FIT_AGAIN}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} is damaged (expected a JSON object): {FIT_AGAIN}")
    return values


def _checked(values: dict[str, Any], kind: type[Card] | type[StoreInfo], path: Path) -> dict[str, Any]:
    """Return the values, lists as tuples, if their keys are the fields of `kind`."""
    expected = {field.name for field in fields(kind)}
    for what, keys in (("lacks", expected - set(values)), ("has unknown", set(values) - expected)):
        if keys:
            raise StoreError(f"{path} {what} key '{min(keys)}': {FIT_AGAIN}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _write_atomic(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        _write_synced(new, data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
