"""Deep prompt tokens (Jia et al. 2022, arXiv 2203.12119, VPT-deep)."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import Network
from cdm_lightning.prompts.prompt import START_DEVIATION, Prompt, classes_of, label_tokens


class Tokens(Prompt):
    """`tokens` tokens of their own for every layer, which attention sees beside the image's.

    Backbones without attention add the tokens of a layer up, so more of them only learn faster.

    Attributes:
        tokens: [layer, token, width].
    """

    kind: ClassVar[str] = "tokens"
    learning_rate: ClassVar[float] = 3e-3
    settings: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(self, backbone: Backbone, tokens: int, classes: int, generator: torch.Generator) -> None:
        super().__init__(backbone, classes, generator)
        layers, width = backbone.prompt_shape
        self.tokens = nn.Parameter(START_DEVIATION * torch.randn(layers, tokens, width, generator=generator))

    @classmethod
    def like(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Self:
        """Return a prompt into which the state dict `tensors` can be loaded."""
        return cls(backbone, tensors["tokens"].shape[1], classes_of(tensors), torch.Generator())

    @classmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return F with the tokens, and the label token, of every row's own source; see `Prompt.network`."""
        one, labels = prompts[0].tokens, label_tokens(prompts, row, label)
        alone = len(prompts) == 1
        tokens = one.expand(len(row), -1, -1, -1) if alone else torch.stack([each.tokens for each in prompts])[row]
        return partial(backbone, prompt=tokens if labels is None else torch.cat([tokens, labels], dim=2))

    @property
    def batch_key(self) -> Hashable:
        """Return what prompts must share so that their rows can go through the network together."""
        return self.kind, self.tokens.shape[1], self.labels is None
