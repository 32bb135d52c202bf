"""The ledger of a store: what was added, refitted or forgotten, each line chained to the line before by its hash."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from cdm_lightning.errors import StoreError

Event: TypeAlias = Literal["added", "refitted", "forgotten"]
LEDGER_LOCK = "ledger.lock"  # beside the ledger
START = "0" * 64  # what the first line names as the hash of the line before


@dataclass(frozen=True)
class Entry:
    """One line. `before` and `after` are the sha256 of compartment.safetensors, None where there was or is none."""

    event: Event
    source: str
    before: str | None
    after: str | None
    date: str  # UTC, ISO 8601, seconds
    previous: str  # sha256 of the line before, without its line end
    seal: str = ""  # sha256 of this entry without its seal


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made if it is missing and stays."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append(path: Path, event: Event, source: str, before: str | None, after: str | None) -> None:
    """Append one line; the lock (`ledger.lock` beside the ledger) is held for the append only."""
    with locked(path.with_name(LEDGER_LOCK)):
        lines = whole_lines(path)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(event, source, before, after, date, previous=_sha256(lines[-1]) if lines else START)
        append_line(path, _text(replace(entry, seal=_sha256(_text(entry).encode()))))


def read(path: Path) -> list[Entry]:
    """Return the lines of a ledger, oldest first; none if there is no ledger.

    Raises:
        StoreError: a line is not an entry; names the line.
    """
    return [_parse(line, path, number) for number, line in _numbered(path)]


def verify(path: Path) -> None:
    """Check that each line is as it was written, and carries the hash of the line before.

    The chain shows a line that was changed, deleted or moved, save at its end: whoever writes the last line anew, seal
    and all, or deletes it, is not noticed.

    Raises:
        StoreError: names the first line that is not an entry or does not follow from the line before.
    """
    previous = START
    for number, line in _numbered(path):
        entry = _parse(line, path, number)
        if entry.seal != _sha256(_text(replace(entry, seal="")).encode()) or _text(entry).encode() != line:
            raise StoreError(f"{path}, line {number}: the line was changed; compare it with a copy")
        if entry.previous != previous:
            raise StoreError(
                f"{path}, line {number}: the chain is broken, the lines up to it were changed, deleted or moved; "
                "compare it with a copy"
            )
        previous = _sha256(line)


def newest(path: Path) -> dict[str, Entry]:
    """Return the newest entry of every source; a line that was cut is none.

    Raises:
        StoreError: a line is not an entry; names the line.
    """
    entries = (_parse(line, path, number) for number, line in enumerate(whole_lines(path), start=1))
    return {entry.source: entry for entry in entries}


def last(path: Path, source: str) -> Entry | None:
    """Return the newest entry of a source, None if it has none; lines before it are not looked at.

    Raises:
        StoreError: a line is not an entry; names the line.
    """
    lines = list(enumerate(whole_lines(path), start=1))
    entries = (_parse(line, path, number) for number, line in reversed(lines))
    return next((entry for entry in entries if entry.source == source), None)


def _text(entry: Entry) -> str:
    return json.dumps(asdict(entry), sort_keys=True)


def _numbered(path: Path) -> list[tuple[int, bytes]]:
    return list(enumerate(path.read_bytes().splitlines(), start=1)) if path.exists() else []


def _parse(line: bytes, path: Path, number: int) -> Entry:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Entry)}:
        raise StoreError(f"{path}, line {number}: this is no entry of a ledger; compare it with a copy")
    return Entry(**values)


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file without their ends; one that a kill or a full disk cut is none of them."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def append_line(path: Path, line: str) -> None:
    """Append a line in place of what is left of one that was cut, and wait until the disk has it."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(sum(len(one) + 1 for one in whole_lines(path)))
        file.truncate()
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
