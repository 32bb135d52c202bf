"""What the kinds share whose prompt is a trained copy: of the backbone, or of a part of it."""

from collections.abc import Callable, Hashable, Mapping
from typing import Self

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone
from cdm_lightning.prompts.prompt import Prompt, classes_of


class Copied(Prompt):
    """A prompt whose size follows from the backbone."""

    @classmethod
    def like(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Self:
        """Return a prompt into which the state dict `tensors` can be loaded."""
        return cls(backbone, classes_of(tensors), torch.Generator())

    @property
    def batch_key(self) -> Hashable:
        """Return what prompts must share so that their rows can go through the network together."""
        return self.kind, self.labels is None


def by_source(run: Callable[..., Tensor], row: Tensor, output: Tensor, *given: Tensor | None) -> Tensor:
    """Fill `output` [batch, ...] by one pass for each source, and return it.

    Args:
        run: takes the number of a source, and what is given of its rows.
        row: [batch], the number of each row's source.
        output: of the right shape.
        given: [batch, ...], or None, which stays None.
    """
    for i in row.unique().tolist():
        mine = row == i
        output[mine] = run(i, *(None if part is None else part[mine] for part in given)).to(output.dtype)
    return output
