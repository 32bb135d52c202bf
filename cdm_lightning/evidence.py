"""Evidence log p_i(x; sigma): how well compartment i alone explains a noised image."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.interpolation import interpolate


class Evidence(Protocol):
    """What weighs a source; computed from that source's compartment alone."""

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) [batch], up to a constant that is common to all sources.

        Args:
            x: [batch, channel, height, width].
            sigma: [batch].
            label: [batch] class of each image, where the evidence is class-conditional.
        """


@dataclass(frozen=True)
class Calibration:
    """What keeps evidence honest at low noise; constants that are fitted on `public`.

    Attributes:
        sigma: [level], rising noise levels.
        temperature: [level], at least 1: log densities are divided by it.
        floor: below this noise level the density is evaluated at the floor.
    """

    sigma: Tensor
    temperature: Tensor
    floor: float

    @classmethod
    def none(cls) -> "Calibration":
        """Return the calibration that changes nothing."""
        return cls(torch.ones(1), torch.ones(1), 0.0)

    def temperature_at(self, sigma: Tensor) -> Tensor:
        """Return the temperature [batch] at `sigma` [batch], linear in log sigma, constant beyond the ends."""
        grid = self.sigma.to(sigma).log()
        table = self.temperature.to(sigma)
        return interpolate(sigma.clamp_min(self.floor).log(), grid, table)


@dataclass(frozen=True)
class GaussianEvidence:
    """The closed form's log density; below `sigma_switch` tempered and floored, above it exact."""

    gaussians: Gaussians
    calibration: Calibration
    sigma_switch: float

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) [batch], divided by the temperature below the switch.

        Raises:
            BadInput: a label is given, which this evidence cannot tell from another.
        """
        if label is not None:
            raise BadInput(
                "this evidence is class-blind, so it cannot weigh sources under a label: take the evidence of the "
                "class, as Compartments.under(label) does"
            )
        below = sigma < self.sigma_switch
        level = torch.where(below, sigma.clamp_min(self.calibration.floor), sigma)
        temperature = torch.where(below, self.calibration.temperature_at(sigma), torch.ones_like(sigma))
        return self.gaussians.log_density(x, level) / temperature
