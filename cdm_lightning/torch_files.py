"""Files of torch.save, read as data: whatever is in them, no code of theirs is run."""

import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor


def read_torch_file(file: str | BinaryIO, *, mmap: bool = False) -> Any:
    """Return what torch.save wrote, on the CPU; with `mmap` tensors stay on the disk until they are used.

    Raises:
        ValueError: it cannot be read, or it holds more than data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # what a damaged or malicious file makes of the reader is not promised to be one type
        raise ValueError(f"no readable file of torch.save ({error})") from error


def tensors_by_name(contents: object) -> dict[str, Tensor]:
    """Return `contents` if it is a state dict.

    Raises:
        ValueError: it is anything else than tensors by name.
    """
    if not isinstance(contents, Mapping):
        raise ValueError("it is no mapping")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in contents.items()):
        raise ValueError("it holds something else than tensors by name")
    return dict(contents)
