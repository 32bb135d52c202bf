"""What a number needs beside it, so that it can be repeated."""

import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "torchvision", "lightning", "timm", "webdataset", "scikit-learn", "torch-fidelity", "numpy")


def versions() -> dict[str, str | int]:
    """Return the versions of what computes, and on what."""
    return {name: version(name) for name in PACKAGES} | {
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
