"""The files of a store: tensors with metadata, and JSON; checked when they are read, written as a whole or not."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cdm_lightning.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

JsonScalar: TypeAlias = str | int | float | bool | None
Json: TypeAlias = "JsonScalar | Sequence[Json] | Mapping[str, Json]"

FIT_AGAIN = "restore it from a copy or fit it again"


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json]) -> None:
    """Write tensors of any shape and type with metadata, as a whole or not; equal content gives equal bytes."""
    write_atomic(path, pack(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata that `write_tensors` wrote.

    Raises:
        StoreError: the file is missing, or a byte of it changed.
    """
    return unpack(read_bytes(path), path)


def pack(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Json]) -> bytes:
    """Return a safetensors file. Its one metadata key holds sorted JSON, since several would come in random order."""
    import torch
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    envelope = {"metadata": metadata, "sha256": _content_sha256(save(own), metadata)}
    return save(own, metadata={"cdm": _compact(envelope)})


def unpack(data: bytes, path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return tensors and metadata of the bytes that `pack` made; `path` is where they lie.

    Raises:
        StoreError: a byte of them changed.
    """
    from safetensors.torch import load

    metadata = metadata_of(data, path)
    return load(data), metadata


def metadata_of(data: bytes, path: Path) -> dict[str, Any]:
    """Return the metadata of the bytes that `pack` made, checked with the tensors, without torch; see `unpack`.

    Raises:
        StoreError: a byte of them changed.
    """
    try:
        envelope = json.loads(_split(data)[0]["__metadata__"]["cdm"])
        intact = envelope["sha256"] == _content_sha256(data, envelope["metadata"])
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise StoreError(f"{path} is damaged, or not a file of a store: {FIT_AGAIN}")
    metadata: dict[str, Any] = envelope["metadata"]
    return metadata


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


def json_text(value: Any) -> str:
    """Return the text of a JSON file: sorted keys, so equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        StoreError: the file is missing, or holds none.
    """
    try:
        values = json.loads(read_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): {FIT_AGAIN}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} is damaged (expected a JSON object): {FIT_AGAIN}")
    return values


def checked_fields(values: dict[str, Any], kind: type[Any], path: Path) -> dict[str, Any]:
    """Return the values of a dataclass, lists as tuples.

    Raises:
        StoreError: their keys are not the fields of `kind`; `path` is where they lie.
    """
    expected = {field.name for field in fields(kind)}
    for what, keys in (("lacks", expected - set(values)), ("has unknown", set(values) - expected)):
        if keys:
            raise StoreError(f"{path} {what} key '{min(keys)}': {FIT_AGAIN}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex.

    Raises:
        StoreError: it is missing.
    """
    _check_there(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        StoreError: it is missing.
    """
    _check_there(path)
    return path.read_bytes()


def _check_there(path: Path) -> None:
    """Raise StoreError if a file is missing."""
    if not path.is_file():
        raise StoreError(f"{path} is missing: {FIT_AGAIN}")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file as a whole or not."""
    new = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write_synced(new, data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_report(path: Path, report: Json) -> None:
    """Write what a command found as JSON for people, as a whole or not."""
    write_atomic(path, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of writing a file; whoever calls is the only one who writes it now."""
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        left.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
