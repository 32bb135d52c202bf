"""Guided networks without one of their two parts, or with more convolutions: which part finishes a draft?"""

import torch
from torch import Tensor, nn

from cdm_lightning.backbone import UViT
from cdm_lightning.conv_net import ConvNet

BOTH, TRANSFORMER, HEAD, DEEP = "both", "transformer", "head", "transformer and a deeper head"


class DeepHead(nn.Module):
    """The convolutions of `ConvNet` in the place of `GuideHead`.

    Args:
        channels: of an image.
        width: of the embedding of the noise level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.net = ConvNet(channels=channels, width=width)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights; see `ConvNet.initialize`."""
        self.net.initialize(generator)

    def forward(self, seen: Tensor, embedding: Tensor) -> Tensor:
        """Return what is added to F [batch, channel, height, width]; see `GuideHead.forward`."""
        every_layer = embedding[:, None].expand(-1, len(self.net.levels), -1)
        return self.net.convolve(seen, self.net.changes(every_layer))


def take_parts(network: UViT, parts: str) -> None:
    """Leave a guided network, not yet initialized, the parts that it is named for."""
    if parts == TRANSFORMER:
        network.guide_head = None
    if parts == DEEP:
        network.guide_head = DeepHead(network.channels, network.width)  # type: ignore[assignment]
    if parts == HEAD:
        network.final_layer.requires_grad_(False)  # which starts at 0, and so passes nothing on, forward or back
