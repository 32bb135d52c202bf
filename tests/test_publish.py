"""Writing shards: a full disk, a killed run, a foreign folder in the way. Nothing is lost, nothing is half-written."""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdm_lightning.errors import BadInput
from datamodules import ShardDataModule, writer
from datamodules.manifest import Manifest
from datamodules.publish import LOCK, NEW, OLD, mend, publish
from tests.made_shards import SOURCES, content, noise, save_images, write

WRITES = ("os.mkdir", "os.replace", "os.rmdir", "os.unlink")
WRITES += ("pathlib.Path.touch", "pathlib.Path.write_bytes", "pathlib.Path.write_text")


class Killed(BaseException):
    """The process ends here; nothing of it runs any more."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", count=6)


@pytest.fixture
def root(images: Path, tmp_path: Path) -> Path:
    """Shards of alice, bob and public, with images that have changed since: of alice, and of carol, who is new."""
    write(tmp_path / "root", images)
    (tmp_path / "root" / "others").mkdir()
    (tmp_path / "root" / "others" / "file").write_text("mine")
    noise(77).save(images / "alice" / "00.png")
    (images / "carol").mkdir()
    noise(78).save(images / "carol" / "00.png")
    return tmp_path / "root"


@contextmanager
def failing(number: int, error: BaseException, mended: bool = True) -> Iterator[list[str]]:
    """Let the `number`-th call that writes raise `error` (half the data is written), and later ones too if not mended.

    Yields:
        The names of the calls that were made.
    """
    calls: list[str] = []

    def broken(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            if len(calls) == number or (len(calls) > number and not mended):
                if name.startswith("pathlib.Path.write"):
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2], **options)  # type: ignore[index, arg-type]
                raise error
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            module, function = name.rsplit(".", 1)
            owner = {"os": os, "pathlib.Path": Path}[module]
            patch.setattr(owner, function, broken(name, getattr(owner, function)))
        yield calls


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def number_of_writes(root: Path, images: Path, tmp_path: Path) -> int:
    """Return how many calls a run that succeeds makes."""
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    with failing(0, full()) as calls:
        write(copy, images)
    return len(calls)


def after_writing(root: Path, images: Path, tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "after", images)
    return content(root) | content(tmp_path / "after")


FULL = (
    "cannot write shards below '{}' (No space left on device); shards that were there are kept: make room and see that "
    "you may write there, or choose another folder, and run again"
)


def refusal(root: Path, images: Path) -> str | None:
    """Return what a run says if it fails."""
    try:
        write(root, images)
    except BadInput as error:
        return str(error)
    return None


@pytest.mark.parametrize("first", [False, True])
def test_a_disk_that_is_full_at_any_write_leaves_the_old_shards_and_nothing_else(
    first: bool, root: Path, images: Path, tmp_path: Path
) -> None:
    """Some calls may fail without harm: to make a folder that is there, to delete what is no longer needed."""
    if first:
        shutil.rmtree(root)
        root.mkdir()
    before, after = content(root), after_writing(root, images, tmp_path)
    number, harmless = number_of_writes(root, images, tmp_path), 0
    for k in range(1, number + 1):
        trial = Path(shutil.copytree(root, tmp_path / f"trial{k}"))
        with failing(k, full()):
            error = refusal(trial, images)
        harmless += error is None
        assert error in (None, FULL.format(trial))
        if error:
            assert content(trial) == before
            assert sorted(path.name for path in trial.iterdir()) == sorted(path.name for path in root.iterdir())
        else:
            assert {name: data for name, data in content(trial).items() if not name.startswith(".cdm-")} == after
        write(trial, images)
        assert content(trial) == after
        assert not {NEW, OLD, LOCK} & {path.name for path in trial.iterdir()}
    assert number > 20
    assert harmless < number / 2


def test_a_run_that_is_killed_at_any_write_is_undone_by_the_next_look(root: Path, images: Path, tmp_path: Path) -> None:
    """Every later call fails too, as in a process that is gone: not even its own tidying up happens."""
    before, after = content(root), after_writing(root, images, tmp_path)
    seen = []
    for k in range(1, number_of_writes(root, images, tmp_path) + 1):
        trial = Path(shutil.copytree(root, tmp_path / f"trial{k}"))
        with failing(k, Killed(), mended=False), pytest.raises(Killed):
            write(trial, images)
        sources = ShardDataModule(str(trial)).available_sources()
        seen.append(content(trial))
        assert seen[-1] in (before, after)
        assert sources == ["alice", "bob"] + ["carol"] * (seen[-1] == after)
        assert not {NEW, OLD, LOCK} & {path.name for path in trial.iterdir()}
        write(trial, images)
        assert content(trial) == after
    assert seen[0] == before
    assert seen[-1] == after


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_told(code: int, images: Path, tmp_path: Path) -> None:
    with failing(1, OSError(code, os.strerror(code)), mended=False), pytest.raises(BadInput) as caught:
        write(tmp_path / "root", images)
    assert f"cannot write shards below '{tmp_path}/root' ({os.strerror(code)})" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_file_on_the_way_is_told(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"file/root' \(Not a directory\)"):
        write(tmp_path / "file" / "root", images)


def test_an_interrupted_run_leaves_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path, manifest: Manifest) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out" / "root", images)
    assert list((tmp_path / "out").iterdir()) == []


def test_images_are_never_replaced_by_their_shards(images: Path) -> None:
    before = content(images)
    with pytest.raises(BadInput, match=r"images/alice' holds other files than shards, and shards of that name would"):
        write(images, images)
    assert content(images) == before


@pytest.mark.parametrize("name", ["notes.txt", "1.tar", "manifest.json/x", ".hidden"])
def test_a_folder_with_other_files_is_never_replaced(name: str, images: Path, tmp_path: Path) -> None:
    place = tmp_path / "root" / "bob" / name
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(BadInput, match=r"root/bob' holds other files than shards"):
        write(tmp_path / "root", images)
    assert content(tmp_path / "root") == {f"bob/{name}": b"mine"}


def test_a_file_in_place_of_a_source_is_never_replaced(images: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "bob").write_text("mine")
    with pytest.raises(BadInput, match=r"root/bob' holds other files than shards"):
        write(tmp_path / "root", images)
    assert content(tmp_path / "root") == {"bob": b"mine"}


def test_a_source_on_another_disk_keeps_its_files_and_is_replaced_by_a_folder(root: Path, images: Path) -> None:
    (root / "alice").rename(root / "others" / "alice")
    (root / "alice").symlink_to(root / "others" / "alice")
    before = content(root / "others")
    write(root, images)
    assert content(root / "others") == before
    assert not (root / "alice").is_symlink()


def write_slowly(root: Path, images: Path, ready: "multiprocessing.synchronize.Event") -> None:
    def fill(new: Path) -> None:
        (new / "zoe").mkdir(parents=True)
        ready.set()
        write(new / "inner", images)
        shutil.rmtree(new / "inner")
        (new / "zoe" / "manifest.json").write_text("{}")

    publish(root, fill)


def test_two_processes_write_one_after_the_other(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=write_slowly, args=(root, images, ready))
    other.start()
    assert ready.wait(60)
    mend(root)
    assert sorted(path.name for path in root.iterdir()) == ["zoe"]
    assert write(root, images, public_fraction=0) == dict.fromkeys(SOURCES, 6)
    other.join()
    assert sorted(path.name for path in root.iterdir()) == ["alice", "bob", "zoe"]
