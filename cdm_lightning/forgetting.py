"""Forgetting a source: every trace of it that a store holds is deleted, and what lies elsewhere is listed.

Deletion is exact by construction: a compartment is made from its own source alone, so without it the store is what it
would be if the source had never been there, byte for byte but for ledger and runs.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdm_lightning import ledger
from cdm_lightning.claim import claimed
from cdm_lightning.errors import UnknownSource
from cdm_lightning.outputs import outputs_of
from cdm_lightning.run_sources import composed_lock, drop_source, files_of
from cdm_lightning.store import EXCLUSIONS, LEDGER, Store, check_name
from cdm_lightning.tensor_files import file_sha256

PENDING = ".pending.yaml"  # end of the file that keeps how a source was fitted, while single images are forgotten
CONTINUAL_RUN = "continual"
JOINT_RUNS = ("composed", CONTINUAL_RUN)  # folders of runs/ in which several sources take part


@dataclass(frozen=True)
class Trace:
    """A file of a store in which a source took part: its path in the store, sha256 and length."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Forgotten:
    """What forgetting a source did, or would do.

    Attributes:
        source: its name.
        removed: the files that were removed.
        compartment_sha256: of the compartment's tensors; None if there was no compartment.
        others_sha256: of the tensors of the compartments that stay, by source; without those that are damaged.
        backbone_sha256: of the backbone, which stays.
        outputs: what commands wrote elsewhere with this source, and is still there; not removed.
    """

    source: str
    removed: list[Trace]
    compartment_sha256: str | None
    others_sha256: dict[str, str]
    backbone_sha256: str
    outputs: list[str]


def forget_source(store: Store, source: str, dry_run: bool = False) -> Forgotten:
    """Delete the compartment of a source and its traces in the store's runs, and enter it in the ledger.

    What was cut short goes on: nothing is left of the source afterwards, whatever was left of it before. Of a source
    that was forgotten before and left no trace, nothing is removed and nothing entered.

    Args:
        store: the store.
        source: the source; its compartment, its runs, or its name in the ledger must be there.
        dry_run: only tell what would be removed.

    Raises:
        UnknownSource: the store has never had it.
        BadInput: it is no name of a source, or another process writes it.
    """
    check_name(source)
    if not _known(store, source):
        raise UnknownSource(source, store.sources(), f"the store {store.path}")
    sha256 = store.tensors_sha256(store.sources())
    removed = [trace(store, path) for path in traces(store, source)]
    if not dry_run:
        with claimed(store.runs, source, "forgotten"):
            _remove(store, source)
    return Forgotten(
        source,
        removed,
        sha256.pop(source, None),
        sha256,
        store.info.backbone_sha256,
        [str(path) for path in outputs_of(store.runs, source)],  # last: see `image_folder.make_folder`
    )


def trace(store: Store, path: Path) -> Trace:
    """Return what a receipt says of a file of a store."""
    return Trace(str(path.relative_to(store.path)), file_sha256(path), path.stat().st_size)


def _remove(store: Store, source: str) -> None:
    store.remove_compartment(source)
    if _own_runs(store, source).exists():
        shutil.rmtree(_own_runs(store, source))
    with ledger.locked(composed_lock(store.runs)):
        for name in JOINT_RUNS:
            drop_source(store.runs / name, source)


def traces(store: Store, source: str) -> Iterator[Path]:
    """Yield every file of the store in which a source took part, but for the ledger."""
    for folder in (store.folder(source), _own_runs(store, source)):
        yield from sorted(path for path in folder.rglob("*") if path.is_file())
    for name in JOINT_RUNS:
        yield from files_of(store.runs / name, source)


def pending_of(store: Store, source: str) -> Path:
    """Return the file that keeps the configuration of a source whose images are being forgotten."""
    return store.path / EXCLUSIONS / f"{source}{PENDING}"


def _own_runs(store: Store, source: str) -> Path:
    return store.runs / "sources" / source


def _known(store: Store, source: str) -> bool:
    return source in store.sources() or source in ledger.newest(store.path / LEDGER) or any(traces(store, source))
