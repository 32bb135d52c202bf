"""A backbone that is not ours: two convolutions, a third of the code of a real one."""

import torch
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone


class ConvNet(Backbone):
    """Convolutions over image, guide and noise level; a prompt shifts the hidden features.

    Args:
        image_size: height and width.
        channels: 1 or 3.
        guided: whether it sees a draft.
        width: hidden channels.
    """

    def __init__(self, image_size: int, channels: int, guided: bool, width: int = 8) -> None:
        super().__init__()
        self.init_args = {"image_size": image_size, "channels": channels, "guided": guided, "width": width}
        self.prompt_shape = (1, width)
        self.enter = nn.Conv2d(channels * (3 if guided else 1) + 1, width, 3, padding=1)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every parameter afresh."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05, generator=generator)

    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F, shaped as x."""
        level = (time / 1000)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        seen = [x, level] if guide is None else [x, level, guide]
        hidden = self.enter(torch.cat(seen, dim=1)).relu()
        if prompt is not None:
            hidden = hidden + prompt.mean(dim=(1, 2))[:, :, None, None]
        output: Tensor = self.leave(hidden)
        return output
