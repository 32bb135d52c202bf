"""Temperature and floor: what keeps evidence honest at low noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.interpolation import interpolate


@dataclass(frozen=True)
class Calibration:
    """What keeps evidence honest at low noise; constants that are fitted on `public`.

    Attributes:
        sigma: [level], rising noise levels; Gaussians are trusted as they are at more noise than the last one.
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
        """Return the temperature [batch] at `sigma` [batch], linear in log sigma; constant below, 1 above the grid."""
        grid, table = self.sigma.to(sigma), self.temperature.to(sigma)
        inside = interpolate(sigma.clamp_min(self.floor).log(), grid.log(), table)
        return torch.where(sigma > grid[-1], torch.ones_like(inside), inside)
