"""Evidence of the closed form: `gaussians`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.evidence.calibration import Calibration
from cdm_lightning.gaussians import Gaussians


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
