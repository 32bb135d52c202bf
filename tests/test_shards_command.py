"""`shards` by command line: bad images and options give one sentence and exit code 2, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdm_lightning.cli import main
from tests.made_shards import content, png, save_images
from tests.test_images import png_of_size


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said on stderr, which is one line."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in line
    return line


def shards(out: Path, images: Path, *options: str, from_: str = "folder") -> int:
    return main(["shards", "--from", from_, "--input", str(images), "--out", str(out), "--size", "6", *options])


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda images: (images / old).rename(images / new)


def replace(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda images: (images / name).write_bytes(data)


@pytest.mark.parametrize("name", ["monolith", "none", "all", "composed", "backbone", "Backbone!", "Null"])
def test_reserved_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename("alice", name)(save_images(tmp_path / "images", 2))
    assert shards(tmp_path / "root", tmp_path / "images") == 2
    slug = name.lower().rstrip("!")
    assert f"{name}/00.png: '{slug}' cannot name a source: all, backbone, composed, false, monolith," in sentence(
        capsys
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            rename("alice", "名前"),
            "名前/00.png: '名前' cannot name a source: it needs a letter a-z, a digit or _; rename it",
        ),
        (rename("alice", "3 cats"), "3 cats/00.png: '3-cats' cannot name a source: it must start with a letter a-z"),
        (rename("alice", "Bob"), "both name source 'bob', as 'Bob' and 'bob': write one owner's name in one way"),
        (rename("alice/00.png", "alice/0.1.png"), ""),
        (rename("bob/00.png", "alice/01.jpg"), "alice/01.jpg and alice/01.png both get the key 'alice-01': rename one"),
        (replace("bob/00.png", png_of_size(50_000, 50_000)), "bob/00.png cannot be used: no readable PNG or JPEG"),
        (replace("bob/00.png", png_of_size(9_000, 9_000)), "bob/00.png cannot be used: 9000x9000 pixels are more than"),
        (replace("bob/00.png", png(1)[:50]), "bob/00.png cannot be used: no readable PNG or JPEG image"),
        (lambda images: (images / "bob" / "x.png").symlink_to("/etc/hostname"), "bob/x.png is a symbolic link: put"),
        (shutil.rmtree, "images' is no folder with .png, .jpg, .jpeg images in it"),
    ],
)
def test_unusable_images(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(save_images(tmp_path / "images", 2))
    assert shards(tmp_path / "root", tmp_path / "images") == (2 if message else 0)
    if message:
        assert message in sentence(capsys)
        assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../x.png,a,a", "images.csv', line 2: ../x.png leaves the folder of the list"),
        ("x.png,../../a,a", ""),
        (
            "x.png,..,a",
            "images.csv', line 2: '..' cannot name a source: it needs a letter a-z, a digit or _; rename it",
        ),
        ("x.png,a,", "images.csv', line 2: path,source,label must be three texts, none empty"),
        ("y.png,a,a", "y.png cannot be used: there is no such file"),
    ],
)
def test_unusable_lists(row: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(png(0))
    (tmp_path / "in" / "images.csv").write_text(f"path,source,label\n{row}\n")
    assert shards(tmp_path / "root", tmp_path / "in" / "images.csv", from_="list") == (2 if message else 0)
    if message:
        assert message in sentence(capsys)
        assert not (tmp_path / "root").exists()
    else:
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "0"), "image_size must be at least 1, but is 0"),
        (("--size", "100000"), "image_size must be at most 8000, but is 100000"),
        (("--split", ""), "split must be one of class, folder, list, random:N with a number N, but is ''"),
        (("--public-classes", "[cats]"), "public class 'cats' is neither a label nor an index below 2; the labels are"),
        (("--public-fraction", "1"), "public_fraction must be at least 0 and below 1, but is 1.0"),
    ],
)
def test_unusable_options(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards(tmp_path / "root", save_images(tmp_path / "images", 2), *options) == 2
    assert message in sentence(capsys)
    assert not (tmp_path / "root").exists()


def test_the_output_in_place_of_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(save_images(tmp_path / "images", 2))
    assert shards(tmp_path / "images", tmp_path / "images") == 2
    assert "images/alice' holds other files than shards" in sentence(capsys)
    assert content(tmp_path / "images") == before


def test_sources_that_were_there_before_and_are_not_among_the_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, root = save_images(tmp_path / "images", 2), tmp_path / "root"
    assert shards(root, images) == 0
    assert "left there" not in capsys.readouterr().out
    rename("bob", "zoe")(images)
    rename("alice", "carol")(images)
    before = content(root)
    assert shards(root, images) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("none of these images are theirs: alice, bob")
    assert before.items() <= content(root).items()
