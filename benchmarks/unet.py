"""A plain U-Net (Ho et al. 2020, arXiv 2006.11239, without attention): what one would train on all images at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from cdm_lightning.backbone import Backbone
from cdm_lightning.uvit_layers import sinusoidal_embedding

GROUPS = 8


class Residual(nn.Module):
    """Two convolutions and a shortcut; scaled and shifted between them by the embedding of the noise level."""

    def __init__(self, entering: int, leaving: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, channels) for channels in (entering, leaving))
        self.enter = nn.Conv2d(entering, leaving, 3, padding=1)
        self.level = nn.Linear(width, 2 * leaving)
        self.leave = nn.Conv2d(leaving, leaving, 3, padding=1)
        self.shortcut = nn.Conv2d(entering, leaving, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [batch, leaving, height, width]; `embedding` is [batch, width]."""
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norms[1](self.enter(silu(self.norms[0](x)))) * (1 + scale) + shift
        output: Tensor = self.shortcut(x) + self.leave(silu(hidden))
        return output


class UNet(Backbone):
    """Residual blocks at halved resolutions and back, joined by skips; takes neither a guide nor a prompt.

    Args:
        image_size: height and width.
        channels: 1 or 3.
        guided: must be False.
        features: channels of each level, multiples of 8.
        width: of the embedding of the noise level.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        guided: bool = False,
        features: Sequence[int] = (32, 64, 96),
        width: int = 128,
    ) -> None:
        super().__init__()
        assert not guided
        self.init_args = {
            "image_size": image_size,
            "channels": channels,
            "guided": guided,
            "features": list(features),
            "width": width,
        }
        self.prompt_shape, self.width = (1, width), width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter = nn.Conv2d(channels, features[0], 3, padding=1)
        steps = list(zip((features[0], *features), features, strict=False))
        self.down = nn.ModuleList(Residual(entering, leaving, width) for entering, leaving in steps)
        self.middle = nn.ModuleList(Residual(features[-1], features[-1], width) for _ in range(2))
        self.up = nn.ModuleList(Residual(2 * leaving, entering, width) for entering, leaving in reversed(steps))
        self.norm = nn.GroupNorm(GROUPS, features[0])
        self.leave = nn.Conv2d(features[0], channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights (Glorot and Bengio 2010); last layers of blocks and of the network start at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in (self.leave, *(block.leave for block in self.modules() if isinstance(block, Residual))):
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F [batch, channel, height, width]; see `Backbone.forward`."""
        embedding = self.embed(sinusoidal_embedding(time, self.width))
        hidden, skips = self.enter(x), []
        for block in self.down:
            hidden = block(hidden, embedding)
            skips.append(hidden)
            if block is not self.down[-1]:
                hidden = avg_pool2d(hidden, 2)
        for block in self.middle:
            hidden = block(hidden, embedding)
        for block in self.up:
            skip = skips.pop()
            hidden = block(torch.cat([interpolate(hidden, skip.shape[2:]), skip], dim=1), embedding)
        output: Tensor = self.leave(silu(self.norm(hidden)))
        return output
