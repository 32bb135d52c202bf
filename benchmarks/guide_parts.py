"""Guided networks without one of their two parts, or with more convolutions: which part finishes a draft?"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from cdm_lightning.backbone import UViT

BOTH, TRANSFORMER, HEAD, DEEP = "both", "transformer", "head", "transformer and a deeper head"
DILATIONS = (1, 2, 4, 1)
FEATURES = 32


class DeepHead(nn.Module):
    """As `GuideHead`, but with a residual convolution for each of DILATIONS, all modulated: it sees 21 x 21 pixels.

    Args:
        channels: of an image.
        width: of the embedding of the noise level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * channels, FEATURES, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(FEATURES, FEATURES, 3, padding=d, dilation=d) for d in DILATIONS)
        self.level = nn.Linear(width, 2 * FEATURES * (1 + len(DILATIONS)))
        self.leave = nn.Conv2d(FEATURES, channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights (He et al. 2015); the modulation and the output start at 0."""
        for layer in (self.enter, *self.middle):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        for parameter in (self.level.weight, self.leave.weight):
            nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, seen: Tensor, embedding: Tensor) -> Tensor:
        """Return what is added to F [batch, channel, height, width]; see `GuideHead.forward`."""
        first, *changes = self.level(embedding)[:, :, None, None].chunk(1 + len(DILATIONS), dim=1)
        hidden = modulated(self.enter(seen), first)
        for layer, change in zip(self.middle, changes, strict=True):
            hidden = hidden + modulated(layer(hidden), change)
        output: Tensor = self.leave(silu(hidden))
        return output


def modulated(hidden: Tensor, change: Tensor) -> Tensor:
    """Scale and shift features [batch, feature, height, width] by `change` [batch, 2 feature, 1, 1]."""
    scale, shift = change.chunk(2, dim=1)
    return silu(hidden * (1 + scale) + shift)


def take_parts(network: UViT, parts: str) -> None:
    """Leave a guided network, not yet initialized, the parts that it is named for."""
    if parts == TRANSFORMER:
        network.guide_head = None
    if parts == DEEP:
        network.guide_head = DeepHead(network.channels, network.width)  # type: ignore[assignment]
    if parts == HEAD:
        network.final_layer.requires_grad_(False)  # which starts at 0, and so passes nothing on, forward or back
