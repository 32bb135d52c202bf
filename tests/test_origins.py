"""Where images come from: names, keys, labels and what is refused."""

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from cdm_lightning.errors import BadInput
from datamodules.encoding import convert
from datamodules.names import RESERVED, check_source, sample_key, slug
from datamodules.origins import read_origin


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 2, 3)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("T-shirt/top", "t-shirt-top"), ("Ankle boot", "ankle-boot"), (" Ünï_1 ", "n-_1"), ("___", "___"), ("!?", "")],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize("name", ["train", "type", "half", "a", "part0", "t-shirt-top", "a_1"])
def test_good_source_names_pass(name: str) -> None:
    assert check_source(name) == name


@pytest.mark.parametrize("name", ["", "1a", "-a", "A", "a.b", "a/b", "a b", "_a", "a\n", "../a", "ä"])
def test_bad_source_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="must start with a letter"):
        check_source(name)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_source_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="reserved"):
        check_source(name)


def test_keys_have_no_dots_or_slashes() -> None:
    assert sample_key("Alice/img.v2 (1)") == "Alice-img-v2-1-"


def test_digits_match_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    collection = read_origin("digits", None)
    assert collection.classes == [f"digit{i}" for i in range(10)]
    assert [record.label for record in collection.records] == [f"digit{target}" for target in data.target]
    record = collection.records[1234]
    assert (record.key, record.source) == ("digit-1234", None)
    levels = np.array(record.load(), dtype=float)
    assert np.abs(levels - data.images[1234] * 255 / 16).max() <= 0.5


@pytest.mark.parametrize(
    ("from_", "kind", "key"),
    [("cifar10", "CIFAR10", "cifar10-00001"), ("fashion_mnist", "FashionMNIST", "fashion-00001")],
)
def test_torchvision_images_keep_content_and_class_order(
    from_: str, kind: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stub:
        classes = ["T-shirt/top", "Bag"]
        data = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
        targets = [1, 0]

        def __init__(self, root: str, train: bool) -> None:
            assert (root, train) == (str(tmp_path), True)

    monkeypatch.setattr(torchvision.datasets, kind, Stub)
    collection = read_origin(from_, str(tmp_path))
    assert collection.classes == ["t-shirt-top", "bag"]
    assert [record.label for record in collection.records] == ["bag", "t-shirt-top"]
    assert collection.records[1].key == key
    assert np.array_equal(np.array(collection.records[1].load()), Stub.data[1])


@pytest.mark.parametrize(
    ("from_", "kind", "title"), [("cifar10", "CIFAR10", "CIFAR-10"), ("fashion_mnist", "FashionMNIST", "Fashion-MNIST")]
)
def test_without_network_the_message_says_what_to_do(
    from_: str, kind: str, title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(self: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", download)
    with pytest.raises(BadInput) as caught:
        read_origin(from_, str(tmp_path))
    assert str(caught.value) == (
        f"no network to download {title}, put it in place or use `--data.from folder --data.input DIR` "
        "(for the shards command `--from folder --input DIR`)"
    )


def test_folder_gives_source_label_and_key(tmp_path: Path) -> None:
    save(tmp_path / "Alice B" / "Cats 1" / "b.v2.png", 7)
    save(tmp_path / "bob" / "x.JPG")
    (tmp_path / "bob" / "notes.txt").write_text("no image")
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


def of_no_label(root: Path) -> None:
    save(root / "a" / "!!" / "x.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is no folder with .png, .jpg, .jpeg images in it"),
        (in_no_folder, "b.png lies directly in"),
        (of_two_names, "folders 'Alice' and 'alice' .* both name 'alice'"),
        (of_one_key, "a/x-1.jpg and a/x.1.png both get the key 'a-x-1'"),
        (of_no_label, "'!!' cannot name a class"),
    ],
)
def test_unusable_folders_are_refused(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(BadInput, match=message):
        read_origin("folder", str(tmp_path))


@pytest.mark.parametrize("from_", ["folder", "list"])
def test_folder_and_list_need_an_input(from_: str) -> None:
    with pytest.raises(BadInput, match="need an input"):
        read_origin(from_, None)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a" / "broken.png")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadInput, match=r"broken\.png cannot be used"):
        read_origin("folder", str(tmp_path)).records[0].load()


def test_sixteen_bit_grey_is_refused_not_clipped() -> None:
    with pytest.raises(BadInput, match=r"x\.png has grey levels of more than 8 bits"):
        convert(Image.fromarray(np.full((2, 2), 1000, dtype=np.uint16)), 1, "x.png")


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
    ],
)
def test_unusable_lists_are_refused(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        read_origin("list", write_list(tmp_path, *lines))


def test_a_list_needs_its_header_and_file(tmp_path: Path) -> None:
    (tmp_path / "headless.csv").write_text("a.png,a,a\n")
    with pytest.raises(BadInput, match="must start with the line path,source,label"):
        read_origin("list", str(tmp_path / "headless.csv"))
    with pytest.raises(BadInput, match="is no CSV file"):
        read_origin("list", str(tmp_path / "missing.csv"))


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.png cannot be used"):
        read_origin("list", write_list(tmp_path, "missing.png,a,a")).records[0].load()
