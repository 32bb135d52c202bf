"""Put folders of shards in place, all of them or none: a run that fails or is killed leaves what was there."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cdm_lightning.errors import BadInput
from datamodules.manifest import FILTERED, MANIFEST
from datamodules.names import is_shard

NEW = ".cdm-new"  # what is being written: one folder per source
OLD = ".cdm-old"  # what it replaces, or an empty file where there was nothing; only while folders change places
LOCK = ".cdm-lock"


def publish(root: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder with one folder of shards per source, then move these below `root`.

    A source whose new folder is empty is removed. Folders of other sources below `root` are left alone, and so is a
    folder that is there already, byte for byte.

    Raises:
        BadInput: `root` cannot be written, or a folder there that would be replaced holds other files than shards.
    """
    with _alone(root):
        write(root / NEW)
        _exchange(root)


def mend(root: Path) -> None:
    """Undo or finish what a killed `publish` left below `root`; waits for one that is running.

    Raises:
        BadInput: something is left, and `root` cannot be written.
    """
    if any((root / name).exists() for name in (NEW, OLD, LOCK)):
        with _alone(root):
            pass


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lock of `root`, which is made if it is not there; nothing half-done is there before and after."""
    made = not root.exists()
    try:
        with _locked(root):
            _mend(root)
            try:
                yield
            finally:
                _mend(root)
    except OSError as error:
        raise BadInput(
            f"cannot write shards below '{root}' ({error.strerror}); shards that were there are kept: make room and "
            "see that you may write there, or choose another folder, and run again"
        ) from error
    finally:
        if made:
            with suppress(OSError):
                root.rmdir()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with _lock(root):
        try:
            yield
        finally:
            with suppress(OSError):
                (root / LOCK).unlink()


def _lock(root: Path) -> IO[bytes]:
    """Return the locked file; while waiting, another process may have removed the file that was opened."""
    while True:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / LOCK).open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        if (root / LOCK).exists() and os.path.samestat(os.fstat(file.fileno()), (root / LOCK).stat()):
            return file
        file.close()


def _exchange(root: Path) -> None:
    """Move every new folder into place, what was there to `OLD`; the removal of the empty `NEW` makes it final."""
    for new in sorted((root / NEW).iterdir()):
        check_replaceable(root / new.name)
    (root / OLD).mkdir()
    for new in sorted((root / NEW).iterdir()):
        place, old = root / new.name, root / OLD / new.name
        if not place.exists():
            old.touch()
        elif _bytes_of(place) == _bytes_of(new):
            shutil.rmtree(new)
            continue
        else:
            os.replace(place, old)
        if any(new.iterdir()):
            os.replace(new, place)
        else:
            new.rmdir()
    (root / NEW).rmdir()


def check_replaceable(place: Path) -> None:
    """Raise BadInput unless nothing but shards is lost with the folder `place`, if it is there."""
    if place.exists() and not (place.is_dir() and all(_is_ours(path) for path in place.iterdir())):
        raise BadInput(
            f"'{place}' holds other files than shards, and shards of that name would replace it: choose another folder "
            "for the shards"
        )


def _is_ours(path: Path) -> bool:
    return path.is_file() and (path.name in (MANIFEST, FILTERED) or is_shard(path.name))


def _bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _mend(root: Path) -> None:
    """Undo an exchange that did not become final, and remove what is left of a final one: at the latest next time."""
    if (root / NEW).exists() and (root / OLD).exists():
        for old in (root / OLD).iterdir():
            _restore(old, root / old.name)
    for left in (root / OLD, root / NEW):
        shutil.rmtree(left, ignore_errors=True)


def _restore(old: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    if old.is_file():
        old.unlink()
    else:
        os.replace(old, place)
