"""Where images come from: names, keys, labels and what is refused."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from cdm_lightning.errors import BadInput
from datamodules.datasets import CLASSES
from datamodules.encoding import convert
from datamodules.names import RESERVED, check_source, is_key, sample_key, slug
from datamodules.origins import OriginName, read_origin


@pytest.mark.parametrize(
    ("name", "expected"),
    [("T-shirt/top", "t-shirt-top"), ("Ankle boot", "ankle-boot"), (" Ünï_1 ", "n-_1"), ("___", "___"), ("!?", "")],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize("name", ["train", "type", "half", "a", "part0", "t-shirt-top", "a_1"])
def test_good_source_names_pass(name: str) -> None:
    assert check_source(name, "here") == name


@pytest.mark.parametrize("name", ["", "1a", "-a", "A", "a.b", "a/b", "a b", "_a", "a\n", "../a", "ä"])
def test_bad_source_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"here: '{re.escape(name)}' cannot name a source: it must start with a letter"):
        check_source(name, "here")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_source_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"here: '{name}' cannot name a source: .* are reserved; rename it"):
        check_source(name, "here")


def test_a_name_fits_into_a_path() -> None:
    assert check_source("a" * 100, "here") == "a" * 100
    with pytest.raises(BadInput, match="is too long to name a source: at most 100 characters"):
        check_source("a" * 101, "here")


def test_keys_have_no_dots_or_slashes() -> None:
    assert sample_key("Alice/img.v2 (1)") == "Alice-img-v2-1-"


def test_names_in_other_alphabets_have_keys_of_their_own() -> None:
    """Nothing would be left of them but '-'; an accent that stands apart, as macOS writes it, makes no difference."""
    names = ["ann/кот", "ann/пёс", "ann/猫", "ann/zoé", "ann/zoë", "ann/zo", os.fsdecode(b"ann/\xe9")]
    keys = [sample_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(is_key(key) for key in keys)
    assert keys[0] == f"ann-{hashlib.sha256('ann/кот'.encode()).hexdigest()[:12]}"
    assert sample_key("ann/zoe\u0301") == sample_key("ann/zo\u00e9") == keys[3]


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


DATA_SETS = pytest.mark.parametrize(
    ("from_", "kind", "title"), [("cifar10", "CIFAR10", "CIFAR-10"), ("fashion_mnist", "FashionMNIST", "Fashion-MNIST")]
)


def failing(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@DATA_SETS
@pytest.mark.parametrize("error", [URLError("no route"), ConnectionResetError(), TimeoutError(), RuntimeError("md5")])
def test_without_network_the_message_says_what_to_do(
    error: Exception, from_: OriginName, kind: str, title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", failing(error))
    with pytest.raises(BadInput) as caught:
        read_origin(from_, str(tmp_path))
    assert str(caught.value) == (
        f"no network to download {title}, put it in place or use `--data.from folder --data.input DIR` "
        "(for the shards command `--from folder --input DIR`)"
    )


@DATA_SETS
def test_torchvision_itself_finds_no_network(
    from_: OriginName, kind: str, title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", failing(URLError("no route")))
    with pytest.raises(BadInput, match=f"no network to download {title}"):
        read_origin(from_, str(tmp_path))


@DATA_SETS
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_download_that_cannot_be_written_is_told(
    code: int, from_: OriginName, kind: str, title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", failing(OSError(code, os.strerror(code))))
    with pytest.raises(BadInput) as caught:
        read_origin(from_, str(tmp_path))
    assert str(caught.value) == (
        f"{title} cannot be downloaded to '{tmp_path}' ({os.strerror(code)}): make room there, or name another folder "
        "as input"
    )


def idx(numbers: np.ndarray) -> bytes:
    """Return a file of Fashion-MNIST: type and shape, then the bytes."""
    header = bytes([0, 0, 8, numbers.ndim]) + b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    return header + numbers.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """The files of a Fashion-MNIST of two images."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(np.arange(2 * 28 * 28).reshape(2, 28, 28)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array([9, 3])))
    return folder


def test_fashion_mnist_is_read_and_has_the_classes_that_are_known_beforehand(fashion: Path, tmp_path: Path) -> None:
    collection = read_origin("fashion_mnist", str(tmp_path))
    assert [record.label for record in collection.records] == ["ankle-boot", "dress"]
    assert collection.classes == CLASSES["fashion_mnist"]


@pytest.mark.parametrize("name", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("left", [0, 3, 9, 200])
def test_damaged_files_of_a_data_set_are_told(name: str, left: int, fashion: Path, tmp_path: Path) -> None:
    path = fashion / f"train-{name}-ubyte"
    path.write_bytes(path.read_bytes()[:left] if left < 200 else path.read_bytes()[:-1] + b"\xff" * (name[0] == "l"))
    with pytest.raises(BadInput) as caught:
        read_origin("fashion_mnist", str(tmp_path))
    assert str(caught.value).startswith(f"the files of Fashion-MNIST in '{tmp_path}' cannot be read (")
    assert str(caught.value).endswith("): delete them, and they are downloaded again")


def test_damaged_pickles_of_cifar_are_never_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr("pickle.load", failing(AssertionError("opened")))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", failing(URLError("no route")))
    with pytest.raises(BadInput, match="no network to download CIFAR-10"):
        read_origin("cifar10", str(tmp_path))


def test_sixteen_bit_grey_is_refused_not_clipped() -> None:
    with pytest.raises(BadInput, match=r"x\.png has grey levels of more than 8 bits"):
        convert(Image.fromarray(np.full((2, 2), 1000, dtype=np.uint16)), 1, "x.png")
