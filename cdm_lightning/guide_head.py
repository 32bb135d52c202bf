"""Local denoising at full resolution, for what patches cannot carry at low noise."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

AT_ONCE = 4  # images whose features stay in the cache of a CPU


class GuideHead(nn.Module):
    """Three convolutions over x, draft and residual, modulated by the noise level; added to the guided backbone's F.

    At low noise F must tell noise from detail pixel by pixel, which a token of a patch has no room for.

    Args:
        channels: of an image.
        width: of the embedding of the noise level.
        features: hidden channels.
    """

    def __init__(self, channels: int, width: int, features: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * channels, features, 3, padding=1)
        self.level = nn.Linear(width, 2 * features)
        self.middle = nn.Conv2d(features, features, 3, padding=1)
        self.leave = nn.Conv2d(features, channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights (He et al. 2015); the modulation and the output start at 0."""
        for layer in (self.enter, self.middle):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        for parameter in (self.level.weight, self.leave.weight):
            nn.init.zeros_(parameter)
        for part in (self.enter, self.level, self.middle, self.leave):
            assert part.bias is not None
            nn.init.zeros_(part.bias)

    def forward(self, seen: Tensor, embedding: Tensor) -> Tensor:
        """Return what is added to F [batch, channel, height, width].

        Args:
            seen: x, draft and residual, [batch, 3 channel, height, width].
            embedding: of the noise level, [batch, width].
        """
        return in_pieces(self._added, seen, self.level(embedding)[:, :, None, None])

    def _added(self, seen: Tensor, change: Tensor) -> Tensor:
        hidden = modulated(self.enter(seen), change)
        output: Tensor = self.leave(silu(hidden + self.middle(hidden)))
        return output


def seen(x: Tensor, guide: Tensor | None) -> Tensor:
    """Return what convolutions see: x, draft and residual [batch, 3 channel, height, width], or x alone."""
    return x if guide is None else torch.cat([x, guide], dim=1)


def summary(hidden: Tensor, cells: int) -> Tensor:
    """Return the mean of each channel over each cell of a grid of `cells` to a side, then its deviation over all of it.

    From [batch, channel, height, width] to [batch, (cells^2 + 1) channel].
    """
    return torch.cat([adaptive_avg_pool2d(hidden, cells).flatten(1), hidden.flatten(2).std(2, correction=0)], dim=1)


def modulated(features: Tensor, change: Tensor) -> Tensor:
    """Scale and shift features [batch, feature, height, width] by `change` [batch, 2 feature, 1, 1]."""
    scale, shift = change.chunk(2, dim=1)
    return silu(features * (1 + scale) + shift)


def in_pieces(run: Callable[[Tensor, Tensor], Tensor], images: Tensor, other: Tensor) -> Tensor:
    """Return what `run` makes of images and what belongs to them, some at a time on a CPU where nothing is trained."""
    if images.device.type != "cpu" or torch.is_grad_enabled():
        return run(images, other)
    return torch.cat([run(*some) for some in zip(images.split(AT_ONCE), other.split(AT_ONCE), strict=True)])
