"""Images of well-known data sets: scikit-learn's digits, and CIFAR-10 and Fashion-MNIST from torchvision."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol
from urllib.error import URLError

import numpy as np
from PIL import Image

from cdm_lightning.errors import BadInput
from datamodules.names import slug
from datamodules.records import Collection, Record

DOWNLOADS = "data/torchvision"
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_CLASSES = ["t-shirt-top", "trouser", "pullover", "dress", "coat"]
FASHION_CLASSES += ["sandal", "shirt", "sneaker", "bag", "ankle-boot"]
DIGITS_CLASSES = [f"digit{digit}" for digit in range(10)]
CLASSES = {"digits": DIGITS_CLASSES, "cifar10": CIFAR10_CLASSES, "fashion_mnist": FASHION_CLASSES}


class LabelledImages(Protocol):
    """What is read of a torchvision data set: uint8 images, class indices, class names."""

    data: Iterable[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]
    targets: Iterable[int]
    classes: list[str]


def digits() -> Collection:
    """Return scikit-learn's 1,797 handwritten digits, 8x8, grey levels 0..16 spread over 0..255."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)
    records = [
        Record(f"digit-{i:04d}", DIGITS_CLASSES[target], None, f"digits/{i}", partial(Image.fromarray, image))
        for i, (image, target) in enumerate(zip(images, data.target, strict=True))
    ]
    return Collection(records, DIGITS_CLASSES)


def cifar10(input: str | None) -> Collection:
    """Return the training images of CIFAR-10 from the folder `input`, downloaded to it if they are not there.

    Its files are pickles; torchvision compares them with their known md5 before it reads them.

    Raises:
        BadInput: they are not there and there is no network, or they cannot be written or read.
    """
    from torchvision.datasets import CIFAR10

    return _torchvision(CIFAR10, input, "CIFAR-10", "cifar10", "cifar10")


def fashion_mnist(input: str | None) -> Collection:
    """Return the training images of Fashion-MNIST from the folder `input`, downloaded to it if they are not there.

    Raises:
        BadInput: they are not there and there is no network, or they cannot be written or read.
    """
    from torchvision.datasets import FashionMNIST

    return _torchvision(FashionMNIST, input, "Fashion-MNIST", "fashion_mnist", "fashion")


def _torchvision(
    kind: Callable[..., LabelledImages], input: str | None, title: str, name: str, prefix: str
) -> Collection:
    root = input or DOWNLOADS
    try:
        return _labelled(_opened(kind, root, title), name, prefix)
    except (OSError, EOFError, ValueError, TypeError, LookupError, AssertionError, RuntimeError) as error:
        raise BadInput(
            f"the files of {title} in '{root}' cannot be read ({error}): delete them, and they are downloaded again"
        ) from error


def _opened(kind: Callable[..., LabelledImages], root: str, title: str) -> LabelledImages:
    try:
        return kind(root, train=True)
    except RuntimeError as error:
        if "download=True" not in str(error):
            raise
    return _downloaded(kind, root, title)


def _downloaded(kind: Callable[..., LabelledImages], root: str, title: str) -> LabelledImages:
    try:
        return kind(root, train=True, download=True)
    except (URLError, ConnectionError, TimeoutError, RuntimeError) as error:
        raise BadInput(
            f"no network to download {title}, put it in place or use `--data.from folder --data.input DIR` "
            "(for the shards command `--from folder --input DIR`)"
        ) from error
    except OSError as error:
        raise BadInput(
            f"{title} cannot be downloaded to '{root}' ({error.strerror}): make room there, or name another folder as "
            "input"
        ) from error


def _labelled(data: LabelledImages, name: str, prefix: str) -> Collection:
    classes = [slug(name) for name in data.classes]
    records = [
        Record(f"{prefix}-{i:05d}", classes[int(target)], None, f"{name}/{i}", partial(_from_array, image))
        for i, (image, target) in enumerate(zip(data.data, data.targets, strict=True))
    ]
    return Collection(records, classes)


def _from_array(image: object) -> Image.Image:
    return Image.fromarray(np.asarray(image))
