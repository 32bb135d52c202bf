"""One writer at a time for each source of a store: who comes second is told who was first, and changes nothing."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cdm_lightning.errors import BadInput

SUFFIX = ".lock"


@contextmanager
def claimed(runs: Path, source: str, doing: str) -> Iterator[None]:
    """Claim a source for as long as its compartment and its runs are written.

    The claim is a lock of the operating system, which ends with the process, however that ends; the file beside it only
    says whose it is. Processes that this one starts do not inherit it.

    Args:
        runs: the store's folder of runs, made if it is not there.
        source: the source, or `public`.
        doing: what is done to it, such as `fitted`.

    Raises:
        BadInput: another process has claimed it.
    """
    path = runs / f"{source}{SUFFIX}"
    runs.mkdir(parents=True, exist_ok=True)
    with _locked(path, source) as file:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"doing": doing, "host": os.uname().nodename, "pid": os.getpid(), "since": since}
        file.truncate(0)
        file.write(json.dumps(holder, sort_keys=True).encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _locked(path: Path, source: str) -> IO[bytes]:
    """Return the locked file; before it was locked, another process may have removed the file that was opened."""
    while True:
        file = path.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise BadInput(
                f"source '{source}' is {_holder(path)}, see {path}: wait until that has ended, then run the same "
                "command again, which goes on from what is finished"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _holder(path: Path) -> str:
    """Return who does what to a source; the file may be gone, or not be written yet."""
    try:
        holder = json.loads(path.read_bytes())
        return f"being {holder['doing']} by process {holder['pid']} of {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "being written by another process"
