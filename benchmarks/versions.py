"""What a number needs beside it, so that it can be repeated."""

import torch

from cdm_lightning import versions as packages

PACKAGES = ("torch", "torchvision", "lightning", "timm", "webdataset", "scikit-learn", "torch-fidelity", "numpy")


def versions() -> dict[str, str | int]:
    """Return the versions of what computes, and on what."""
    return {
        **packages.versions(*PACKAGES),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
