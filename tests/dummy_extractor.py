"""A feature extractor without weights: a fixed projection of coarse pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

DIMENSION = 8


class DummyExtractor:
    """Features [n, 8], fast and nowhere degenerate; `calls` counts the images it was given."""

    dimension = DIMENSION

    def __init__(self, name: str = "dummy", fingerprint: str = "projection of 4 x 4 pixels") -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        coarse = F.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1).float() / 64, 4).flatten(1)
        projection = torch.randn(coarse.shape[1], DIMENSION, generator=torch.Generator().manual_seed(0))
        return torch.tanh(coarse @ projection / 4)


def pictures(n: int, seed: int, channels: int = 3, size: int = 8) -> Tensor:
    """Return smooth random images, uint8 [n, channels, size, size]; another seed, another mean."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 3, 3, generator=g) * 200 + 50 * torch.rand(1, channels, 1, 1, generator=g)
    return F.interpolate(coarse, (size, size), mode="bilinear").to(torch.uint8)
