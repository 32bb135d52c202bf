"""Which sources took part in each file of the composed runs, so that forgetting one finds all that it took part in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdm_lightning.errors import StoreError
from cdm_lightning.tensor_files import file_sha256, json_text, read_object, write_atomic

SOURCES = "sources.json"
NEXT = ""  # stands for the files that were written since the list was
HASHES = "/"  # no file can be called so: the sha256 of every file when the list was written


def composed_lock(runs: Path) -> Path:
    """Return the file whose lock is held while the composed runs are written."""
    return runs / "composed.lock"


def note_sources(folder: Path, sources: Iterable[str]) -> None:
    """Say that all that is written into `folder` from now on is of these sources; call it before.

    What was written since the last call, new files and changed ones, is noted with the sources of that call.

    Raises:
        StoreError: what was noted before is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = _hashes(folder)
    _write(folder, _known(hashes, _noted(folder)), hashes, sorted(sources))


def files_of(folder: Path, source: str) -> list[Path]:
    """Return the files of `folder` in which a source took part, sorted; all, if nothing was noted or it is damaged."""
    try:
        known = _known(_hashes(folder), read_object(folder / SOURCES))
    except StoreError:
        return [folder / name for name in _names(folder)]
    return [folder / name for name, sources in known.items() if source in sources]


def drop_source(folder: Path, source: str) -> None:
    """Delete the files in which a source took part, and its name."""
    for path in files_of(folder, source):
        path.unlink()
    if not _names(folder):
        (folder / SOURCES).unlink(missing_ok=True)
        return
    noted, hashes = _noted(folder), _hashes(folder)
    _write(folder, _known(hashes, noted), hashes, [name for name in noted.get(NEXT, []) if name != source])


def _write(folder: Path, known: dict[str, list[str]], hashes: dict[str, str], following: list[str]) -> None:
    """Note the sources and the sha256 of every file that is there, and the sources of what will be written."""
    write_atomic(folder / SOURCES, json_text(known | {NEXT: following, HASHES: hashes}).encode())


def _known(hashes: dict[str, str], noted: dict[str, Any]) -> dict[str, list[str]]:
    """Return the sources of every file of these hashes: those that were noted, and those of what was written since.

    Written since is what has other bytes; times of files do not survive a copy of the store.
    """
    before, known = noted.get(HASHES, {}), {}
    for name, sha256 in hashes.items():
        since = before.get(name) != sha256
        known[name] = sorted({*noted.get(name, []), *(noted.get(NEXT, []) if since else [])})
    return known


def _hashes(folder: Path) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in _names(folder)}


def _noted(folder: Path) -> dict[str, Any]:
    return read_object(folder / SOURCES) if (folder / SOURCES).exists() else {}


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SOURCES)
