"""A backbone of convolutions at full resolution: small and quick, for finishing drafts.

A draft has the large structure of an image already; what is left is to tell noise from detail, pixel by pixel.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from cdm_lightning.backbone import Backbone
from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import in_pieces, modulated, seen, summary
from cdm_lightning.uvit_layers import check_width, sinusoidal_embedding

CELLS = 7  # to a side of the image, for `features`


class ConvNet(Backbone):
    """Residual dilated convolutions over x, draft and residual, each modulated by the noise level and the prompt.

    A layer scales and shifts its features by a linear map of the embedding of the level; prompt tokens are added to
    that embedding. With the default dilations a pixel sees 21 x 21 others, so without a guide there is nothing to know
    of the rest.

    Args:
        image_size: height and width of an image.
        channels: 1 or 3.
        guided: whether it sees a draft and its residual beside x.
        features: hidden channels.
        dilations: one for each residual convolution.
        width: of the embedding of the noise level, and of prompt tokens.

    Raises:
        BadInput: a size is out of range.
    """

    learning_rate: ClassVar[float] = 4e-3

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        guided: bool = True,
        features: int = 32,
        dilations: Sequence[int] = (1, 2, 4, 1),
        width: int = 192,
    ) -> None:
        super().__init__()
        _check(features, dilations, width)
        self.init_args = {
            "image_size": image_size,
            "channels": channels,
            "guided": guided,
            "features": features,
            "dilations": list(dilations),
            "width": width,
        }
        self.width, self.prompt_shape = width, (1 + len(dilations), width)
        self.enter = nn.Conv2d((3 if guided else 1) * channels, features, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(features, features, 3, padding=d, dilation=d) for d in dilations)
        self.levels = nn.ModuleList(nn.Linear(width, 2 * features) for _ in range(1 + len(dilations)))
        self.leave = nn.Conv2d(features, channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights (He et al. 2015); the modulation and the output start at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F [batch, channel, height, width]; see `Backbone.forward`."""
        embedding = self._embedding(time)
        if prompt is not None:
            embedding = embedding + prompt.sum(2)
        return in_pieces(self.convolve, seen(x, guide), self.changes(embedding))

    def convolve(self, images: Tensor, changes: Tensor) -> Tensor:
        """Return F of all that is seen, with what modulates it [batch, layer, 2 features]."""
        output: Tensor = self.leave(self._hidden(images, changes))
        return output

    def features(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
        """Return what the last layer knows of an image, [batch, 50 features]: see `Featured.features`.

        The mean of each channel over each cell of a grid of 7 x 7, then its deviation over all of it.
        """
        return summary(in_pieces(self._hidden, seen(x, guide), self.changes(self._embedding(time))), CELLS)

    def _embedding(self, time: Tensor) -> Tensor:
        """Return the embedding [batch, layer, width] of the noise level, the same for every layer."""
        return sinusoidal_embedding(time, self.width)[:, None].expand(-1, len(self.levels), -1)

    def changes(self, embedding: Tensor) -> Tensor:
        """Return the scales and shifts [batch, layer, 2 features] of embeddings [batch, layer, width].

        Of the whole batch: low-rank additions to `levels` (see `prompts.lora`) have a row for every image of it.
        """
        return torch.stack([level(own) for level, own in zip(self.levels, embedding.unbind(1), strict=True)], dim=1)

    def _hidden(self, images: Tensor, changes: Tensor) -> Tensor:
        """Return the last layer's features [batch, features, height, width]."""
        first, *others = changes[..., None, None].unbind(1)
        hidden = modulated(self.enter(images), first)
        for convolution, change in zip(self.middle, others, strict=True):
            hidden = hidden + modulated(convolution(hidden), change)
        return silu(hidden)


def _check(features: int, dilations: Sequence[int], width: int) -> None:
    """Raise BadInput that names the key of the first size out of range."""
    where = "model.backbone.init_args"
    if features < 1:
        raise BadInput(f"{where}.features is {features}; expected at least 1")
    if not dilations or min(dilations) < 1:
        raise BadInput(f"{where}.dilations are {list(dilations)}; expected at least one, each at least 1")
    check_width(width)
