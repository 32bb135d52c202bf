"""Samples that are not used: a file of keys, and what a store has forgotten, as keyed hashes."""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from cdm_lightning.errors import BadInput
from datamodules.names import is_key

HASH = re.compile("[0-9a-f]{64}")


def read_keys(path: Path, option: str = "exclude") -> frozenset[str]:
    """Return the keys that a text file lists, one a line; `option` names the file.

    Raises:
        BadInput: the file is missing or no text, or a line is no key.
    """
    if not path.is_file():
        raise BadInput(f"{option}: '{path}' is no file; it must list keys, one a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{option}: '{path}' cannot be read ({error}); it must list keys, one a line, in UTF-8"
        ) from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    for key in sorted(keys):
        if not is_key(key):
            raise BadInput(f"{option}: {key!r} in '{path}' is no key: keys have only letters, digits, _ and -")
    return keys


def forgotten_keys(folder: Path, source: str, keys: Iterable[str]) -> frozenset[str]:
    """Return those of a source's keys that were forgotten.

    Args:
        folder: where `SOURCE.json` lists what was forgotten, as keyed hashes.
        source: the source.
        keys: of its samples.

    Raises:
        BadInput: the list is damaged.
    """
    secret, hashes = _forgotten(folder, source)
    return frozenset(key for key in keys if _keyed_hash(secret, key) in hashes) if hashes else frozenset()


def add_forgotten(folder: Path, source: str, keys: Iterable[str]) -> None:
    """Add keys to the list of what was forgotten of a source, which holds neither keys nor pictures.

    Raises:
        BadInput: the list is damaged.
    """
    secret, hashes = _forgotten(folder, source)
    secret = secret or secrets.token_hex(32)
    hashes = hashes | {_keyed_hash(secret, key) for key in keys}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{source}.json.tmp"
    values = {"seal": _seal(secret, hashes), "secret": secret, "samples": sorted(hashes)}
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / f"{source}.json")


def _forgotten(folder: Path, source: str) -> tuple[str, frozenset[str]]:
    """Return the secret of a list and its keyed hashes; none, if there is no list. Lists of before had no seal."""
    path = folder / f"{source}.json"
    if not path.exists():
        return "", frozenset()
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        secret, samples = values.pop("secret"), values.pop("samples")
        if not isinstance(samples, list) or not all(HASH.fullmatch(text) for text in (secret, *samples)):
            raise ValueError("it holds something else than hashes")
        if values not in ({}, {"seal": _seal(secret, samples)}):
            raise ValueError("it is not as it was written")
        return secret, frozenset(samples)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is damaged ({error}): restore it from a copy; without it, samples that were forgotten would be "
            "learned again"
        ) from error


def _seal(secret: str, hashes: Iterable[str]) -> str:
    """Return a hash of a whole list, which no longer fits once a character of it has changed."""
    return _keyed_hash(secret, " ".join(sorted(hashes)))


def _keyed_hash(secret: str, key: str) -> str:
    """Return a hash of a key that only who knows the secret of this list can compute (HMAC-SHA256)."""
    return hmac.new(bytes.fromhex(secret), key.encode(), hashlib.sha256).hexdigest()
