"""Exponential moving average of what is trained, as buffers, and of nothing else."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A running average of a module's parameters; it goes into checkpoints by itself.

    Args:
        trained: the module whose parameters are averaged; it is not registered here.
        decay: the final decay; after n updates it is min(decay, (1 + n) / (10 + n)).
    """

    updates: Tensor

    def __init__(self, trained: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._trained = [trained]
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        for i, parameter in enumerate(trained.parameters()):
            self.register_buffer(f"average_{i}", parameter.detach().clone())

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        for average, parameter in self._pairs():
            average.lerp_(parameter, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def apply_average(self) -> None:
        """Set the parameters to their averages, for good."""
        for average, parameter in self._pairs():
            parameter.copy_(average)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; doing it twice changes no bit."""
        for average, parameter in self._pairs():
            raw = parameter.clone()
            parameter.copy_(average)
            average.copy_(raw)

    def _pairs(self) -> Iterator[tuple[Tensor, nn.Parameter]]:
        for i, parameter in enumerate(self._trained[0].parameters()):
            yield self.get_buffer(f"average_{i}"), parameter
