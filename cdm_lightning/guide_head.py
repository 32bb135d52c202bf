"""Local denoising at full resolution, for what patches cannot carry at low noise."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

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
        change = self.level(embedding)[:, :, None, None]
        if seen.device.type != "cpu" or torch.is_grad_enabled():
            return self._added(seen, change)
        return torch.cat([self._added(*some) for some in zip(seen.split(AT_ONCE), change.split(AT_ONCE), strict=True)])

    def _added(self, seen: Tensor, change: Tensor) -> Tensor:
        scale, shift = change.chunk(2, dim=1)
        hidden = silu(self.enter(seen) * (1 + scale) + shift)
        output: Tensor = self.leave(silu(hidden + self.middle(hidden)))
        return output
