"""What is trained for one source on the frozen backbone, whatever its kind."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import Network

START_DEVIATION = 0.02
NO_LABEL = 0


class Prompt(nn.Module, ABC):
    """The trained part of one compartment, with label tokens of its own if its source has class labels.

    Args:
        backbone: the frozen network that it is for.
        classes: number of class labels of its source; 0 trains without labels.
        generator: draws the start.

    Attributes:
        kind: as `model.compartment` names it.
        learning_rate: what suits this kind unless a configuration says otherwise.
        settings: of the module, which its constructor takes too: they give its size.
        labels: [1 + class, layer, 1, width], deep tokens; the first stands for "no label".
    """

    kind: ClassVar[str]
    learning_rate: ClassVar[float]
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        layers, width = backbone.prompt_shape
        start = START_DEVIATION * torch.randn(1 + classes, layers, 1, width, generator=generator) if classes else None
        self.labels = None if start is None else nn.Parameter(start)

    @classmethod
    @abstractmethod
    def like(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Self:
        """Return a prompt into which the state dict `tensors` can be loaded."""

    @classmethod
    @abstractmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return the network F in which every row of a batch has the prompt of its own source.

        Args:
            backbone: the frozen network.
            prompts: of one `batch_key`.
            row: [batch] index into `prompts`.
            label: [batch] index into `labels` of that prompt; 0 is "no label".
        """

    @property
    @abstractmethod
    def batch_key(self) -> Hashable:
        """Return what prompts must share so that their rows can go through the network together."""

    @property
    def count(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def label_tokens(prompts: Sequence[Prompt], row: Tensor, label: Tensor) -> Tensor | None:
    """Return the label token of every row [batch, layer, 1, width], or None if these prompts have no labels."""
    tables: list[Tensor] = [prompt.labels for prompt in prompts if prompt.labels is not None]
    if not tables:
        return None
    first = torch.tensor([0, *accumulate(len(table) for table in tables)][:-1], device=row.device)
    return torch.cat(tables)[first[row] + label]


def classes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of class labels of a stored prompt."""
    return len(tensors["labels"]) - 1 if "labels" in tensors else 0
