"""What every estimator of evidence offers."""

from typing import Protocol

from torch import Tensor


class Evidence(Protocol):
    """What weighs a source; computed from that source's compartment alone."""

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) [batch], up to a constant that is common to all sources.

        Args:
            x: [batch, channel, height, width].
            sigma: [batch].
            label: [batch] class of each image, where the evidence is class-conditional.
        """
