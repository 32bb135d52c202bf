"""What is trained for one source, and the named collection of it."""

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Deep prompt tokens: `count` tokens of their own for every layer (Jia et al. 2022, VPT-deep).

    Args:
        prompt_shape: (layer, width) of the backbone.
        count: tokens per layer.
        generator: draws the start, normal with deviation 0.02.
    """

    def __init__(self, prompt_shape: tuple[int, int], count: int, generator: torch.Generator) -> None:
        super().__init__()
        layers, width = prompt_shape
        self.tokens = nn.Parameter(0.02 * torch.randn(layers, count, width, generator=generator))

    def rows(self, count: int) -> Tensor:
        """Return the tokens once per row: [count, layer, token, width]."""
        return self.tokens.expand(count, -1, -1, -1)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Tokens":
        """Return the prompt whose `state_dict` is `tensors`."""
        layers, count, width = tensors["tokens"].shape
        prompt = cls((layers, width), count, torch.Generator())
        prompt.load_state_dict(tensors)
        return prompt


class Prompts(nn.ModuleDict):
    """The prompts by source. Inner keys carry a prefix, since `train`, `type` or `half` are names of module methods."""

    PREFIX = "source_"

    def put(self, source: str, prompt: Tokens) -> None:
        """Insert or replace the prompt of a source."""
        self[self.PREFIX + source] = prompt

    def find(self, source: str) -> Tokens | None:
        """Return the prompt of a source, or None if it has none."""
        key = self.PREFIX + source
        return self[key] if key in self else None  # type: ignore[return-value]  # noqa: SIM401
