"""A whole `fit`, and `forget --sample --purge`, cut at file operations. Oracle: the bytes of an undisturbed run.

Operations are renaming, removing, making folders, syncing, and opening a file to write it, which is then left empty.
The suite cuts at every `STRIDE`-th of them, from the `OFFSET`-th on; `CDM_EVERY_CUT=1` cuts at each.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdm_lightning import ledger
from cdm_lightning.cli import main
from cdm_lightning.store import Store
from cdm_lightning.verification import faults
from datamodules.manifest import read_manifest, usable
from tests.conftest import Fit
from tests.faults import Fault, failing_at, operations_of
from tests.made_shards import noise, save_images, write
from tests.test_forget import tree
from tests.test_purge import OPTIONS

EVERY = os.environ.get("CDM_EVERY_CUT") == "1"
STRIDE, OFFSET = (1, 0) if EVERY else (29, 11)
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", "3", "--trainer.enable_checkpointing", "true")
KINDS = {"none": (), "tokens": (*TOKENS, "--checkpoint_every", "2")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of two sources and `public`; read them, do not change them."""
    folder = tmp_path_factory.mktemp("shards")
    images = save_images(folder / "images", count=16)
    (images / "public").mkdir()
    for k in range(60):
        noise(1000 + k).save(images / "public" / f"{k}.png")
    write(folder / "root", images)
    return folder / "root"


def cuts(action: Callable[[Path], int], start: Path | None, place: Path) -> tuple[Path, list[Path]]:
    """Return the folder that an undisturbed action leaves, and those of runs that were cut, before they go on."""

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(start, place / name)) if start else place / name

    whole = fresh("whole")
    operations = operations_of(lambda: action(whole), opened=True)
    left = []
    for k in range(OFFSET, operations, STRIDE):
        cut = fresh(f"cut{k}")
        with failing_at(k, opened=True), pytest.raises(Fault):
            action(cut)
        left.append(cut)
    print(f"{len(left)} cuts of {operations} operations")
    return whole, left


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_is_cut_anywhere_goes_on(kind: str, shards: Path, fit: Fit, tmp_path: Path) -> None:
    def action(store: Path) -> int:
        return fit(store, "[alice, bob]", "--data.root", str(shards), *OPTIONS, *KINDS[kind])

    whole, left = cuts(action, None, tmp_path)
    for cut in left:
        if Store.create(cut).has_backbone():
            assert faults(Store.open(cut)) == [], cut.name
        assert action(cut) == 0
        assert tree(cut, "runs", "ledger") == tree(whole, "runs", "ledger"), cut.name
        assert faults(Store.open(cut)) == []
        ledger.verify(cut / "ledger.jsonl")


@pytest.fixture(scope="module")
def learned(shards: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of both sources and their shards; read it, do not change it."""
    place = tmp_path_factory.mktemp("learned") / "learned"
    shutil.copytree(shards, place / "root")
    assert fit(place / "store", "all", "--data.root", str(place / "root"), *OPTIONS) == 0
    return place


def test_a_purge_that_is_cut_anywhere_goes_on(learned: Path, tmp_path: Path) -> None:
    manifests = [read_manifest(learned / "root" / name) for name in ("alice", "bob")]
    keys = [sorted(usable(manifest, "train", frozenset()))[3] for manifest in manifests]

    def action(place: Path) -> int:
        where = ("--store", str(place / "store"), "--root", str(place / "root"))
        return main(["forget", *where, "--purge", *(word for key in keys for word in ("--sample", key))])

    whole, left = cuts(action, learned, tmp_path)
    for cut in left:
        assert faults(Store.open(cut / "store")) == [], cut.name
        assert action(cut) == 0
        assert tree(cut / "root") == tree(whole / "root"), cut.name
        lists = "store/exclusions/alice.json", "store/exclusions/bob.json"  # each has a secret of its own
        kept = ("store/runs", "store/ledger", *lists)
        assert tree(cut, *kept) == tree(whole, *kept), cut.name
        assert faults(Store.open(cut / "store")) == []
        ledger.verify(cut / "store" / "ledger.jsonl")


# --- a disk that is full, or cannot be written


def full(operation: str) -> OSError | None:
    """Fail as a full disk does: what needs no room is done."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if operation in ("open", "mkdir", "fsync") else None


def read_only(operation: str) -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(("error", "said"), [(full, "full|No space left"), (read_only, "read-only|Read-only")])
@pytest.mark.parametrize("command", ["fit", "forget", "purge", "add"])
def test_a_disk_that_refuses_is_told_in_one_sentence_and_the_store_is_as_before(
    command: str,
    error: Callable[[str], OSError | None],
    said: str,
    learned: Path,
    fit: Fit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = Path(shutil.copytree(learned, tmp_path / "start"))
    key = sorted(usable(read_manifest(learned / "root" / "alice"), "train", frozenset()))[3]
    if command in ("fit", "add"):
        assert main(["forget", "--store", str(start / "store"), "--source", "alice"]) == 0

    def action(place: Path) -> int:
        store, root = ("--store", str(place / "store")), str(place / "root")
        if command == "fit":
            return fit(place / "store", "[alice]", "--data.root", root, *OPTIONS)
        if command == "add":
            return main(["store", "add", *store, str(learned / "store" / "compartments" / "alice")])
        named = ("--source", "alice") if command == "forget" else ("--sample", key, "--root", root, "--purge")
        return main(["forget", *store, *named])

    whole = Path(shutil.copytree(start, tmp_path / "whole"))
    operations = operations_of(lambda: action(whole), opened=True)
    refused = 0
    for k in sorted({0, *range(OFFSET, operations, STRIDE)}):
        place = Path(shutil.copytree(start, tmp_path / "trial"))
        capsys.readouterr()
        with failing_at(k, True, error):
            code = action(place)
        found = capsys.readouterr().err
        assert (code, found) == (0, "") or (code == 2 and re.fullmatch(rf"cdm_lightning: error: .*({said}).*\n", found))
        refused += code == 2
        assert faults(Store.open(place / "store")) == [], k
        assert action(place) == 0
        assert faults(Store.open(place / "store")) == [], k
        assert tree(place / "store" / "compartments") == tree(whole / "store" / "compartments"), k
        assert tree(place / "root") == tree(whole / "root"), k
        shutil.rmtree(place)
    assert refused > 0
