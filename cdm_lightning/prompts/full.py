"""A whole copy of the network per source: the most that a compartment can be."""

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import Network
from cdm_lightning.prompts.prompt import Prompt, classes_of, label_tokens


class Full(Prompt):
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
    def like(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Self:
        """Return a prompt into which the state dict `tensors` can be loaded."""
        return cls(backbone, classes_of(tensors), torch.Generator())

    @classmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return F that sends every row through its own source's copy, one pass per copy; see `Prompt.network`."""
        labels = label_tokens(prompts, row, label)

        def run(x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
            output = torch.empty_like(x)
            for i in row.unique().tolist():
                mine = row == i
                own_guide, own_labels = (None if part is None else part[mine] for part in (guide, labels))
                denoised = prompts[i].copy(x[mine], time[mine], guide=own_guide, prompt=own_labels)
                output[mine] = denoised.to(output.dtype)
            return output

        return run

    @property
    def batch_key(self) -> Hashable:
        """Return what prompts must share so that their rows can go through the network together."""
        return self.kind, self.labels is None
