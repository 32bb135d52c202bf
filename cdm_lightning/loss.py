"""The noise-level law and the denoising loss of training."""

import torch
from torch import Tensor

from cdm_lightning.denoiser import per_image

LOG_MEAN, LOG_DEVIATION = -1.2, 1.2


def draw_sigma(count: int, sigma_min: float, sigma_max: float, generator: torch.Generator) -> Tensor:
    """Draw noise levels [count] from a log-normal law (Karras et al. 2022, Table 1), cut to [sigma_min, sigma_max].

    The cut is exact: the law's quantile function is applied to a uniform draw between the two ends' quantiles.
    """
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return noise_level(uniform, sigma_min, sigma_max)


def noise_level(share: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Return the noise levels below which the law, cut to [sigma_min, sigma_max], has these shares of its mass."""
    law = torch.distributions.Normal(LOG_MEAN, LOG_DEVIATION)
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64).log()
    low, high = law.cdf(ends)
    levels: Tensor = law.icdf(low + (high - low) * share)
    return levels.clamp(*ends.tolist()).exp().float()


def noise_quartile(sigma: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Return the quarter of the law's mass that each noise level falls into: 0 (least noise) to 3."""
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    bounds = noise_level(quarters, sigma_min, sigma_max).to(sigma.device)
    return torch.bucketize(sigma, bounds, right=True)


def denoising_loss(denoised: Tensor, x_0: Tensor, scale: Tensor) -> Tensor:
    """Return mean(|D - x_0|^2 / scale^2) per image [batch]; `scale` [batch] is c_out or the draft's error r."""
    return ((denoised - x_0) / per_image(scale, x_0)).square().flatten(1).mean(1)
