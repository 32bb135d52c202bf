"""A U-Net of convolutions (Ho et al. 2020, arXiv 2006.11239, without attention): it sees the whole image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from cdm_lightning.backbone import Backbone
from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import seen, summary
from cdm_lightning.uvit_layers import check_width, sinusoidal_embedding

GROUPS = 8
CELLS = 2  # to a side of the image, for `features`
MIDDLE = 2  # blocks at the lowest resolution, between the way down and the way up


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
    """Residual blocks at halved resolutions and back, joined by skips; each is modulated by the level and the prompt.

    Prompt tokens are added to the embedding of the noise level that a block is given.

    Args:
        image_size: height and width of an image.
        channels: 1 or 3.
        guided: whether it sees a draft and its residual beside x.
        features: channels of each resolution, multiples of 8; the first is the image's own, each next one half as high.
        width: of the embedding of the noise level, and of prompt tokens.

    Raises:
        BadInput: a size is out of range.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        guided: bool = True,
        features: Sequence[int] = (32, 64, 96),
        width: int = 192,
    ) -> None:
        super().__init__()
        _check(image_size, features, width)
        self.init_args = {
            "image_size": image_size,
            "channels": channels,
            "guided": guided,
            "features": list(features),
            "width": width,
        }
        self.width, self.prompt_shape = width, (2 * len(features) + MIDDLE, width)
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter = nn.Conv2d((3 if guided else 1) * channels, features[0], 3, padding=1)
        steps = list(zip((features[0], *features), features, strict=False))
        self.down = nn.ModuleList(Residual(entering, leaving, width) for entering, leaving in steps)
        self.middle = nn.ModuleList(Residual(features[-1], features[-1], width) for _ in range(MIDDLE))
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
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        for module in (self.leave, *(block.leave for block in self.modules() if isinstance(block, Residual))):
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F [batch, channel, height, width]; see `Backbone.forward`."""
        embedding = self._embedding(time)
        if prompt is not None:
            embedding = embedding + prompt.sum(2)
        levels = embedding.unbind(1)
        hidden, skips = self._descend(seen(x, guide), levels)
        for block, level in zip(self.up, levels[-len(self.up) :], strict=True):
            skip = skips.pop()
            hidden = block(torch.cat([interpolate(hidden, skip.shape[2:]), skip], dim=1), level)
        output: Tensor = self.leave(silu(self.norm(hidden)))
        return output

    def features(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
        """Return what the middle blocks know of an image, [batch, 5 channel]: see `Featured.features`.

        The mean of each channel over each quarter of the image, then its deviation over all of it.
        """
        hidden, _ = self._descend(seen(x, guide), self._embedding(time).unbind(1))
        return summary(hidden, CELLS)

    def _embedding(self, time: Tensor) -> Tensor:
        """Return the embedding [batch, block, width] of the noise level, the same for every block."""
        embedding: Tensor = self.embed(sinusoidal_embedding(time, self.width))
        return embedding[:, None].expand(-1, self.prompt_shape[0], -1)

    def _descend(self, images: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the features after the middle blocks, and what the way up joins, the highest resolution first.

        `levels` has an embedding [batch, width] for each block, those of the way up included.
        """
        hidden, skips = self.enter(images), list[Tensor]()
        for block, level in zip(self.down, levels, strict=False):
            hidden = block(avg_pool2d(hidden, 2) if skips else hidden, level)
            skips.append(hidden)
        for block, level in zip(self.middle, levels[len(skips) :], strict=False):
            hidden = block(hidden, level)
        return hidden, skips


def _check(image_size: int, features: Sequence[int], width: int) -> None:
    """Raise BadInput that names the key of the first size out of range."""
    where = "model.backbone.init_args"
    if not features or min(features) < 1 or any(channels % GROUPS for channels in features):
        raise BadInput(f"{where}.features are {list(features)}; expected at least one, each a multiple of {GROUPS}")
    if image_size >> (len(features) - 1) < 2:
        raise BadInput(
            f"{where}.features are of {len(features)} resolutions, and images of {image_size} pixels can't be halved "
            "so often: give fewer"
        )
    check_width(width)
