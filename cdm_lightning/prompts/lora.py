"""Low-rank additions to the linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import Network
from cdm_lightning.prompts.prompt import Prompt, classes_of, label_tokens

Pair = tuple[Tensor, Tensor]


class LoRA(Prompt):
    """y = W x + b + up (down x) in every linear layer of the backbone; `up` starts at zero.

    Attributes:
        down: by layer, [rank, features in].
        up: by layer, [features out, rank].
    """

    kind: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 2e-3
    settings: ClassVar[tuple[str, ...]] = ("lora_rank",)

    def __init__(self, backbone: Backbone, lora_rank: int, classes: int, generator: torch.Generator) -> None:
        super().__init__(backbone, classes, generator)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in linear_layers(backbone).items():
            start = torch.randn(lora_rank, layer.in_features, generator=generator) / layer.in_features**0.5
            self.down[name], self.up[name] = (
                nn.Parameter(start),
                nn.Parameter(torch.zeros(layer.out_features, lora_rank)),
            )

    @classmethod
    def like(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Self:
        """Return a prompt into which the state dict `tensors` can be loaded."""
        rank = next(len(tensor) for name, tensor in tensors.items() if name.startswith("down."))
        return cls(backbone, rank, classes_of(tensors), torch.Generator())

    @classmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return F with the additions of every row's own source; see `Prompt.network`."""
        labels, layers = label_tokens(prompts, row, label), linear_layers(backbone)
        pairs = {
            layer: (_by_row([own.down[name] for own in prompts], row), _by_row([own.up[name] for own in prompts], row))
            for name, layer in layers.items()
        }

        def run(x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
            with _added(pairs):
                output: Tensor = backbone(x, time, guide=guide, prompt=labels)
            return output

        return run

    @property
    def batch_key(self) -> Hashable:
        """Return what prompts must share so that their rows can go through the network together."""
        return self.kind, len(next(iter(self.down.values()))), self.labels is None


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by name; `/` stands for the dot, which a ParameterDict does not take."""
    layers = ((name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear))
    return {name.replace(".", "/"): layer for name, layer in layers}


def _by_row(matrices: list[Tensor], row: Tensor) -> Tensor:
    """Return a single matrix as it is, otherwise each row's own: [batch, out, in]."""
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices)[row]


@contextmanager
def _added(pairs: Mapping[nn.Linear, Pair]) -> Iterator[None]:
    """Add every layer's low-rank term to its output, as long as the context lasts."""
    handles: list[RemovableHandle] = []
    try:
        handles += [layer.register_forward_hook(_addition(pair)) for layer, pair in pairs.items()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _addition(pair: Pair) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a hook that adds up (down x)."""

    def add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + _times(_times(inputs[0], pair[0]), pair[1])

    return add


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """Return matrix x for x [batch, ..., in] and a matrix [out, in] for all rows, or [batch, out, in] for each."""
    if matrix.ndim == 2:
        return nn.functional.linear(x, matrix)
    return torch.einsum("b...i,boi->b...o", x, matrix)
