"""A whole copy of the network per source: the most that a compartment can be."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import Network
from cdm_lightning.prompts.copied import Copied, by_source
from cdm_lightning.prompts.prompt import label_tokens


class Full(Copied):
    """A copy of the backbone, all of it trained; the backbone itself stays as it was.

    Attributes:
        copy: the network of this source.
    """

    kind: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 3e-4

    def __init__(self, backbone: Backbone, classes: int, generator: torch.Generator) -> None:
        super().__init__(backbone, classes, generator)
        self.copy = type(backbone)(**backbone.init_args)
        self.copy.load_state_dict(backbone.state_dict())

    @classmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return F that sends every row through its own source's copy, one pass per copy; see `Prompt.network`."""
        labels = label_tokens(prompts, row, label)

        def own(i: int, x: Tensor, time: Tensor, guide: Tensor | None, labels: Tensor | None) -> Tensor:
            denoised: Tensor = prompts[i].copy(x, time, guide=guide, prompt=labels)
            return denoised

        def run(x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
            return by_source(own, row, torch.empty_like(x), x, time, guide, labels)

        return run
