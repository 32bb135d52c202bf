"""The folder of a compartment put in place, or taken away, as a whole or not: the line in the ledger decides.

A new folder is written under a hidden name beside its place. Once it is complete the ledger gets its line, which names
its hash, and it is moved into place. What was cut before the line is undone, what was cut after it is finished, by
`mend`, which whoever opens the store next calls. Callers hold the lock of the compartments.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cdm_lightning import ledger
from cdm_lightning.tensor_files import file_sha256, write_synced

WRITTEN, COMPLETE, OLD = "tmp", "new", "old"  # kinds of hidden folders


def put(folder: Path, files: Mapping[str, bytes], tensors: str, entries: Path) -> None:
    """Make or replace the folder of a compartment, and enter it in the ledger.

    Args:
        folder: its place, with the name of the source.
        files: what it holds, by name.
        tensors: which of them the ledger pins.
        entries: the ledger.
    """
    mend(folder, tensors, entries)
    written, complete = _hidden(folder, WRITTEN), _hidden(folder, COMPLETE)
    try:
        written.mkdir(parents=True)
        for name, data in files.items():
            write_synced(written / name, data)
        os.rename(written, complete)
        before = _sha256(folder / tensors)
        event: ledger.Event = "refitted" if before else "added"
        ledger.append(entries, event, folder.name, before, _sha256(complete / tensors))
    except OSError:
        shutil.rmtree(written, ignore_errors=True)
        raise
    _place(complete, folder)


def take_away(folder: Path, tensors: str, entries: Path) -> None:
    """Remove the folder of a compartment, if it is there, and enter it in the ledger as forgotten."""
    mend(folder, tensors, entries)
    if folder.exists():
        os.rename(folder, _hidden(folder, OLD))
        mend(folder, tensors, entries)
    last = ledger.last(entries, folder.name)
    if last is not None and last.event != "forgotten":  # somebody deleted the folder by hand
        ledger.append(entries, "forgotten", folder.name, last.after, None)


def mend(folder: Path, tensors: str, entries: Path) -> None:
    """Undo or finish what was cut short."""
    for written in _all_hidden(folder, WRITTEN):
        shutil.rmtree(written)
    last, old = ledger.last(entries, folder.name), _all_hidden(folder, OLD)
    for complete in _all_hidden(folder, COMPLETE):
        if last is not None and last.after is not None and last.after == _sha256(complete / tensors):
            _place(complete, folder)
        else:
            shutil.rmtree(complete)
    for left in filter(Path.exists, old):
        if not folder.exists() and (last is None or last.event != "forgotten"):
            ledger.append(entries, "forgotten", folder.name, _sha256(left / tensors), None)
        shutil.rmtree(left)


def unfinished(parent: Path) -> list[str]:
    """Return the names of the folders in `parent` that need `mend`."""
    hidden = (folder for kind in (WRITTEN, COMPLETE, OLD) for folder in parent.glob(f".*.{kind}-*"))
    return sorted({folder.name.split(".")[1] for folder in hidden})


def _place(complete: Path, folder: Path) -> None:
    old = _hidden(folder, OLD)
    if folder.exists():
        os.rename(folder, old)
    os.rename(complete, folder)
    if old.exists():
        shutil.rmtree(old)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}-{os.getpid()}")


def _all_hidden(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.parent.glob(f".{folder.name}.{kind}-*"))


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.exists() else None
