"""Where images come from: one name for each origin, and what holds for all of them."""

from collections.abc import Iterable
from typing import Literal, assert_never

from cdm_lightning.errors import BadInput
from datamodules.datasets import cifar10, digits, fashion_mnist
from datamodules.files import folder, list_
from datamodules.records import Collection, Record

OriginName = Literal["cifar10", "fashion_mnist", "digits", "folder", "list"]


def read_origin(from_: OriginName, input: str | None) -> Collection:
    """Return the images of an origin.

    Raises:
        BadInput: the input is missing, empty or malformed, or two images have one key.
    """
    collection = _read(from_, input)
    _check_unique(collection.records)
    return collection


def _read(from_: OriginName, input: str | None) -> Collection:
    match from_:
        case "digits":
            return digits()
        case "cifar10":
            return cifar10(input)
        case "fashion_mnist":
            return fashion_mnist(input)
        case "folder":
            return folder(_needed(from_, input))
        case "list":
            return list_(_needed(from_, input))
        case _:
            assert_never(from_)


def _needed(from_: str, input: str | None) -> str:
    if input is None:
        raise BadInput(
            f"images from '{from_}' need an input, the {'CSV file' if from_ == 'list' else 'folder'}: give one"
        )
    return input


def _check_unique(records: Iterable[Record]) -> None:
    origins: dict[str, str] = {}
    for record in records:
        if record.key in origins:
            raise BadInput(f"{origins[record.key]} and {record.origin} both get the key '{record.key}': rename one")
        origins[record.key] = record.origin
