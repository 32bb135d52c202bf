"""Images in files: sources, labels and keys of a folder and of a list, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from cdm_lightning.errors import BadInput
from datamodules.origins import OriginName, read_origin
from tests.test_images import png_of_size


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 2, 3)).save(path)
    return path


def test_folder_gives_source_label_and_key(tmp_path: Path) -> None:
    save(tmp_path / "Alice B" / "Cats 1" / "b.v2.png", 7)
    save(tmp_path / "bob" / "x.JPG")
    (tmp_path / "bob" / "notes.txt").write_text("no image")
    for hidden in (".thumbnails/t.png", "bob/.cache/c.png", "__MACOSX/bob/._x.png", "bob/._x.png"):
        save(tmp_path / hidden)
    collection = read_origin("folder", str(tmp_path))
    assert collection.classes == ["bob", "cats-1"]
    found = [(record.key, record.source, record.label, record.origin) for record in collection.records]
    assert found == [
        ("Alice-B-Cats-1-b-v2", "alice-b", "cats-1", "Alice B/Cats 1/b.v2.png"),
        ("bob-x", "bob", "bob", "bob/x.JPG"),
    ]
    assert collection.records[0].load().getpixel((0, 0)) == (7, 2, 3)


def in_no_folder(root: Path) -> None:
    save(root / "a" / "a.png")
    save(root / "b.png")


def of_two_names(root: Path) -> None:
    save(root / "Alice" / "a.png")
    save(root / "alice" / "b.png")


def of_one_key(root: Path) -> None:
    save(root / "a" / "x.1.png")
    save(root / "a" / "x-1.jpg")


def of_one_key_in_two_folders(root: Path) -> None:
    save(root / "a" / "b-c.png")
    save(root / "a-b" / "c.png")


def of_no_label(root: Path) -> None:
    save(root / "a" / "!!" / "x.png")


def of_no_source(root: Path) -> None:
    save(root / "名前" / "x.png")


def of_a_linked_file(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "x.png").symlink_to(save(root / "b" / "x.png"))


def of_a_linked_folder(root: Path) -> None:
    save(root / "b" / "x.png")
    (root / "a").symlink_to(root / "b")


def of_a_broken_link(root: Path) -> None:
    save(root / "b" / "x.png")
    (root / "b" / "y.png").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is no folder with .png, .jpg, .jpeg images in it"),
        (in_no_folder, "b.png lies directly in"),
        (of_two_names, "Alice' and folder '.*/alice' both name source 'alice', as 'Alice' and 'alice': write one"),
        (of_one_key, "a/x-1.jpg and a/x.1.png both get the key 'a-x-1'"),
        (of_one_key_in_two_folders, "a-b/c.png and a/b-c.png both get the key 'a-b-c': rename one"),
        (of_no_label, "x.png: '!!' cannot name a class: it needs a letter a-z, a digit or _; rename it"),
        (of_no_source, "x.png: '名前' cannot name a source: it needs a letter a-z, a digit or _; rename it"),
        (of_a_linked_file, "a/x.png is a symbolic link: put the files themselves there"),
        (of_a_linked_folder, "/a is a symbolic link: put the files themselves there"),
        (of_a_broken_link, "b/y.png is a symbolic link: put the files themselves there"),
    ],
)
def test_unusable_folders_are_refused(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(BadInput, match=message):
        read_origin("folder", str(tmp_path))


def test_a_link_to_the_input_itself_and_links_to_other_files_are_no_matter(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a" / "x.png")
    (tmp_path / "images" / "a" / "notes.txt").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert [record.key for record in read_origin("folder", str(tmp_path / "link")).records] == ["a-x"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a" / "x.png")
    save(tmp_path / "b" / "x.png")
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(BadInput, match=r"/b cannot be read \(Permission denied\): make it readable"):
        read_origin("folder", str(tmp_path))


@pytest.mark.parametrize("from_", ["folder", "list"])
def test_folder_and_list_need_an_input(from_: OriginName) -> None:
    with pytest.raises(BadInput, match="need an input"):
        read_origin(from_, None)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a" / "broken.png")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadInput, match=r"broken\.png cannot be used"):
        read_origin("folder", str(tmp_path)).records[0].load()


def refusal_of(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_origin("folder", str(path.parent.parent)).records[0].load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pipe_in_place_of_an_image_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x.png")
    monkeypatch.delattr(Path, "open")
    assert refusal_of(tmp_path / "a" / "x.png") == f"{tmp_path}/a/x.png cannot be used: there is no such file"


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (9_000, 9_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(image: object) -> None:
        raise AssertionError("decoded")

    path = save(tmp_path / "a" / "bomb.png")
    path.write_bytes(png_of_size(width, height))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert refusal_of(path).startswith(f"{path} cannot be used: ")
    assert "pixels" in refusal_of(path)
    assert "decoded" not in refusal_of(path)


def test_a_large_file_that_is_no_image_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a" / "x.png")
    with path.open("r+b") as file:
        file.write(b"no image")
        file.truncate(2**40)
    assert "no readable PNG or JPEG image" in refusal_of(path)


def write_list(root: Path, *lines: str) -> str:
    root.mkdir(exist_ok=True)
    path = root / "images.csv"
    path.write_text("\n".join(("path,source,label", *lines)), encoding="utf-8")
    return str(path)


def test_list_gives_source_label_and_key(tmp_path: Path) -> None:
    save(tmp_path / "lists" / "in" / "a.png", 9)
    absolute = save(tmp_path / "elsewhere" / "b.jpg")
    input = write_list(tmp_path / "lists", "in/a.png,Alice B,Cats", f"{absolute},public,dogs")
    collection = read_origin("list", input)
    assert collection.classes == ["cats", "dogs"]
    assert [(record.source, record.label) for record in collection.records] == [("alice-b", "cats"), ("public", "dogs")]
    assert collection.records[0].key == "in-a"
    assert collection.records[1].key.endswith("-elsewhere-b")
    assert collection.records[0].load().getpixel((0, 0)) == (9, 2, 3)
    assert collection.records[1].load().size == (4, 4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "lists no image"),
        (("../a.png,a,a",), "line 2: ../a.png leaves the folder of the list"),
        (("x/../../a.png,a,a",), "leaves the folder of the list"),
        (("a.png,a",), "line 2: path,source,label must be three texts"),
        (("a.png,a,a,a",), "line 2: path,source,label must be three texts"),
        (("a.png,,a",), "line 2: path,source,label must be three texts"),
        (("a.png,a,a", "a.jpg,b,b"), "a.png and a.jpg both get the key 'a'"),
        (("a.png,a,a", "a.png,b,b"), "a.png and a.png both get the key 'a'"),
        (("a/b.png,a,a", "a-b.png,b,b"), "a/b.png and a-b.png both get the key 'a-b'"),
        ((".,a,a",), "line 2: '.' names no file"),
        (("/,a,a",), "line 2: '/' names no file"),
        (("a\0.png,a,a",), "line 2: 'a.x00.png' names no file"),
        (("outside/a.png,a,a",), "line 2: outside/a.png leaves the folder of the list"),
        (("inside,a,a", "way.png,a,a"), "line 3: way.png leaves the folder of the list"),
        (("a.png,!!,a",), "line 2: '!!' cannot name a source"),
        (("a.png,a,??",), "line 2: '??' cannot name a class"),
        (
            ("a.png,Ann B,a", "b.png,ann-b,a"),
            "line 2 and '.*', line 3 both name source 'ann-b', as 'Ann B' and 'ann-b'",
        ),
    ],
)
def test_unusable_lists_are_refused(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "outside").symlink_to(tmp_path)
    (tmp_path / "lists" / "way.png").symlink_to(save(tmp_path / "a.png"))
    with pytest.raises(BadInput, match=message.replace("?", "[?]")):
        read_origin("list", write_list(tmp_path / "lists", *lines))


def test_a_list_needs_its_header_and_file(tmp_path: Path) -> None:
    (tmp_path / "headless.csv").write_text("a.png,a,a\n")
    with pytest.raises(BadInput, match="must start with the line path,source,label"):
        read_origin("list", str(tmp_path / "headless.csv"))
    with pytest.raises(BadInput, match="is no CSV file"):
        read_origin("list", str(tmp_path / "missing.csv"))


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.png cannot be used"):
        read_origin("list", write_list(tmp_path, "missing.png,a,a")).records[0].load()


@pytest.mark.parametrize("data", [b"path,source,label\n\xff.png,a,a\n", b"path,source,label\n" + b"a" * 200_000])
def test_a_list_that_is_no_csv_in_utf8_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes(data)
    with pytest.raises(BadInput, match=r"images\.csv' cannot be read \(.*\): it must be a CSV file in UTF-8"):
        read_origin("list", str(tmp_path / "images.csv"))


def test_a_link_inside_the_folder_of_a_list_is_followed(tmp_path: Path) -> None:
    (tmp_path / "b.png").symlink_to(save(tmp_path / "a.png", 9))
    (record,) = read_origin("list", write_list(tmp_path, "b.png,a,a")).records
    assert record.load().getpixel((0, 0)) == (9, 2, 3)
