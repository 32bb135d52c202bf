"""`forget --sample --purge`. Oracles: shards written without the sample, a search of the disk, faults at writes."""

import errno
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.errors import BadInput, ShardError
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import file_sha256
from cdm_lightning.verification import faults
from datamodules.manifest import read_manifest, usable
from datamodules.publish import OLD, mend, publish
from datamodules.purge import _cut, check_purgeable, planned_purge, purge
from tests.conftest import Fit
from tests.faults import Fault, failing_at, operations_of
from tests.made_shards import SIZE, content, data_of, keys_in, largest, noise, save_images, write
from tests.test_forget import tree
from tests.test_publish import failing, full

COUNT = 16
DONE = "done"
OPTIONS = ("--data.from", "folder", "--data.split", "folder", "--data.image_size", str(SIZE), "--data.channels", "3")
OPTIONS += ("--data.heldout_fraction", "0.25", "--data.public_fraction", "0.2", "--data.shards_per_source", "4")
OPTIONS += ("--model.backbone.init_args.patch_size", "3", "--model.backbone_steps", "5")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of two sources and `public`; one of alice's is there twice, and bob has it too."""
    folder = save_images(tmp_path_factory.mktemp("images") / "images", count=COUNT)
    (folder / "public").mkdir()
    for k in range(60):
        noise(1000 + k).save(folder / "public" / f"{k}.png")
    for copy in ("alice/again.png", "bob/same.png"):
        shutil.copy(folder / "alice" / "01.png", folder / copy)
    return folder


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the shards of these images; read them, do not change them."""
    root = tmp_path_factory.mktemp("made") / "root"
    write(root, images)
    assert {"alice-01", "alice-again"} <= read_manifest(root / "alice").samples.keys()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def train_keys(root: Path, source: str = "alice") -> list[str]:
    return sorted(usable(read_manifest(root / source), "train", frozenset()))


def without(images: Path, keys: Iterable[str], place: Path) -> Path:
    """Return a root of the shards of a folder of images without some of them; a key names its path."""
    left = Path(shutil.copytree(images, place / "left"))
    for key in keys:
        (left / f"{key.replace('-', '/', 1)}.png").unlink()
    write(place / "without", left)
    return place / "without"


# --- the shards


@pytest.mark.parametrize("which", ["one", "five", "shard", "source", "two sources"])
def test_what_is_left_is_what_shards_writes_without_it(which: str, root: Path, images: Path, tmp_path: Path) -> None:
    every, of_bob = sorted(read_manifest(root / "alice").samples), train_keys(root, "bob")[:2]
    some = {"one": every[3:4], "five": every[:5], "shard": keys_in(largest(root / "alice")), "source": every}
    keys = {"alice": frozenset(some.get(which, every[2:4]))}
    keys |= {"bob": frozenset(of_bob)} if which == "two sources" else {}
    before = content(root)
    planned = planned_purge(root, keys)
    assert content(root) == before
    done = purge(root, keys)
    assert done == planned
    assert content(root) == content(without(images, frozenset().union(*keys.values()), tmp_path))
    assert sorted(path.name for path in root.iterdir()) == ["alice"] * (which != "source") + ["bob", "public"]
    changed = {name for name in before if content(root).get(name) != before[name]}
    assert {file.path for file in done.rewritten} == changed
    for source in set(keys) & {path.name for path in root.iterdir()}:
        data_of(root / source).verify(source)
    assert len(done.origins) == sum(map(len, keys.values()))


def test_a_link_another_file_and_damage_are_refused_before_anything_changes(root: Path, tmp_path: Path) -> None:
    keys, place = {"alice": frozenset(train_keys(root)[:1])}, root / "alice"

    def refusal(kind: type[BadInput], said: str) -> None:
        before = content(root)
        with pytest.raises(kind, match=said):
            check_purgeable(root, keys.keys())
        assert content(root) == before

    shutil.copytree(root, tmp_path / "kept")
    (place / "notes.txt").touch()
    refusal(BadInput, "holds other files than shards")
    (place / "notes.txt").unlink()
    tar = largest(place)
    tar.rename(tmp_path / "tar")
    tar.symlink_to(tmp_path / "tar")
    refusal(BadInput, f"'{tar}' is a link")
    tar.unlink()
    refusal(ShardError, "is left over or missing")
    (tmp_path / "tar").rename(tar)
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    refusal(ShardError, "has sha256")
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "kept" / "alice")
    refusal(BadInput, "alice' is a link")


@pytest.mark.parametrize("error", [full(), OSError(errno.EACCES, "no")])
def test_a_disk_that_refuses_any_write_leaves_the_old_shards(error: OSError, root: Path, tmp_path: Path) -> None:
    keys = {"alice": frozenset(train_keys(root)[:2])}
    whole = Path(shutil.copytree(root, tmp_path / "whole"))
    with failing(0, error) as calls:
        purge(whole, keys)
    before, after = content(root), content(whole)

    def said(root: Path) -> str:
        try:
            purge(root, keys)
        except BadInput as refusal:
            return str(refusal)
        return DONE

    for k in range(1, len(calls) + 1):
        trial = Path(shutil.copytree(root, tmp_path / "trial"))
        with failing(k, error):
            found = said(trial)
        done = found == DONE or "still holds the images and cannot be removed" in found
        assert done or "cannot write shards below" in found
        left = {name: data for name, data in content(trial).items() if not name.startswith(".cdm-")}
        assert left == (after if done else before)
        purge(trial, {"alice": keys["alice"] & read_manifest(trial / "alice").samples.keys()})
        assert content(trial) == after
        shutil.rmtree(trial)


def test_it_is_done_or_undone_wherever_it_is_cut(root: Path, tmp_path: Path) -> None:
    keys = {"alice": frozenset(train_keys(root)[:2]), "bob": frozenset(train_keys(root, "bob")[:1])}
    whole, before = Path(shutil.copytree(root, tmp_path / "whole")), content(root)
    for k in range(operations_of(lambda: purge(whole, keys))):
        cut = Path(shutil.copytree(root, tmp_path / f"{k}"))
        with failing_at(k), pytest.raises(Fault):
            purge(cut, keys)
        mend(cut)
        assert content(cut) in (before, content(whole))
        purge(cut, keys if content(cut) == before else {})
        assert content(cut) == content(whole)


# --- the command


@pytest.fixture(scope="module")
def learned(made: Path, images: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of both sources; read it, do not change it."""
    place = tmp_path_factory.mktemp("learned") / "store"
    assert fit(place, "all", "--data.root", str(made), "--data.input", str(images), *OPTIONS) == 0
    return place


@pytest.fixture
def mine(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "mine"))


def forget(store: Path, root: Path, *options: str) -> int:
    return main(["forget", "--store", str(store), "--root", str(root), "--purge", *options])


def test_the_image_is_on_the_disk_no_more_and_the_model_is_one_that_never_saw_it(
    mine: Path, root: Path, images: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = train_keys(root)[5]
    sample = read_manifest(root / "alice").samples[key]
    with_it = tree(root)
    receipts = [tmp_path / name for name in ("planned.json", "done.json", "again.json")]
    assert forget(mine, root, "--sample", key, "--dry-run", "--json", str(receipts[0])) == 0
    assert tree(root) == with_it
    assert "would be rewritten: 2 files" in capsys.readouterr().out
    assert forget(mine, root, "--sample", key, "--json", str(receipts[1])) == 0
    said = capsys.readouterr().out
    assert "rewritten: 2 files below" in said
    assert f"  alice/{key.removeprefix('alice-')}.png: where its image came from" in said
    assert "still in its shards" not in said
    never_root = without(images, [key], tmp_path)
    assert tree(root) == tree(never_root)
    found = {name for name, data in {**tree(mine), **tree(root)}.items() if key.encode() in data}
    found |= {name for name, data in {**tree(mine), **tree(root)}.items() if sample.sha256.encode() in data}
    assert found == set()
    planned, done = (json.loads(path.read_text()) for path in receipts[:2])
    assert planned["purge"] == done["purge"]
    assert {file["path"]: file["after"] for file in done["purge"]["rewritten"]} == {
        name: file_sha256(root / name) for name, data in tree(root).items() if data != with_it[name]
    }
    store = export_backbone(Store.open(mine), tmp_path / "never").path
    options = ("--data.input", str(images), *OPTIONS)
    assert fit(store, "all", "--data.root", str(never_root), *options) == 0
    assert tree(mine / "compartments") == tree(store / "compartments")
    before = tree(mine / "compartments")
    assert fit(mine, "all", "--data.root", str(root), *options) == 0
    assert tree(mine / "compartments") == before, "up to date"
    assert faults(Store.open(mine)) == []
    all_of_it, shards = tree(mine), tree(root)
    capsys.readouterr()
    assert forget(mine, root, "--sample", key, "--json", str(receipts[2])) == 0
    assert (tree(mine), tree(root)) == (all_of_it, shards), "a second time it does nothing"
    assert f"no shard holds them: 1 of source 'alice': {key}" in capsys.readouterr().out
    assert json.loads(receipts[2].read_text())["purge"] == {"rewritten": [], "origins": []}


def test_the_same_image_goes_under_every_key_and_elsewhere_if_asked(
    mine: Path, root: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(mine, root, "--sample", "alice-again") == 0
    said = capsys.readouterr().out
    assert f"  {root}/bob: holds the same images" in said
    (tmp_path / "one").mkdir()
    assert tree(root) == tree(without(images, ["alice-01", "alice-again"], tmp_path / "one"))
    assert forget(mine, root, "--sample", "bob-same", "--everywhere") == 0
    assert tree(root) == tree(without(images, ["alice-01", "alice-again", "bob-same"], tmp_path))


def test_purge_is_of_samples(mine: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(mine, root, "--source", "alice") == 2
    assert "--purge takes single images out of their shards" in capsys.readouterr().err


def test_a_command_that_is_cut_goes_on(mine: Path, root: Path, tmp_path: Path) -> None:
    """At every 20th file operation, and at the last one, which removes what was replaced."""
    key, before = train_keys(root)[5], tree(root)
    whole = Path(shutil.copytree(mine, tmp_path / "whole"))
    shards = Path(shutil.copytree(root, tmp_path / "shards"))
    operations = operations_of(lambda: forget(whole, shards, "--sample", key))
    for k in [*range(10, operations - 1, 20), operations - 1]:
        cut, its_root = (Path(shutil.copytree(one, tmp_path / f"{k}" / one.name)) for one in (mine, root))
        with failing_at(k), pytest.raises(Fault):
            forget(cut, its_root, "--sample", key)
        assert faults(Store.open(cut)) == []
        assert forget(cut, its_root, "--sample", key) == 0
        assert tree(its_root) == tree(shards) != before
        assert tree(cut / "compartments") == tree(whole / "compartments")
        assert faults(Store.open(cut)) == []


def test_images_that_cannot_be_removed_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(folder: Path, write: Callable[[Path], None]) -> None:
        publish(folder, write)
        (folder / OLD).mkdir()

    key = next(iter(read_manifest(root / "alice").samples))
    monkeypatch.setattr("datamodules.purge.publish", stuck)
    with pytest.raises(BadInput, match="still holds the images and cannot be removed: delete it"):
        purge(root, {"alice": {key}})


@pytest.mark.parametrize("members", range(2, 24))
def test_a_tar_of_any_length_ends_as_a_tar_does(members: int, tmp_path: Path) -> None:
    """Two blocks of zeros, then more until the length is that of whole records."""
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as file:
        for k in range(members):
            info = tarfile.TarInfo(f"k{k}.png")
            info.size = 3
            file.addfile(info, io.BytesIO(b"abc"))
    data = _cut(path, {"k1"})
    assert len(data) % tarfile.RECORDSIZE == 0
    assert data[-2 * tarfile.BLOCKSIZE :] == bytes(2 * tarfile.BLOCKSIZE)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        assert file.getnames() == [f"k{k}.png" for k in range(members) if k != 1]
