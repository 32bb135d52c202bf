"""Samplers over a callable `denoise(x, sigma)`; they know nothing else, so composition needs no change here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.seeding import normal

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Churn:
    """Noise that is added and removed again at every step (Karras et al. 2022, Algorithm 2); amount 0 is the ODE."""

    amount: float = 0.0
    sigma_min: float = 0.05
    sigma_max: float = 50.0
    noise: float = 1.003

    def raised(self, sigma: Tensor, steps: int) -> Tensor:
        """Return the level (a scalar) to which the step that starts at `sigma` first raises the noise."""
        inside = self.sigma_min <= float(sigma) <= self.sigma_max
        return sigma * (1 + min(self.amount / steps, math.sqrt(2) - 1)) if inside else sigma


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, through: float = math.inf
) -> Tensor:
    """Return steps + 1 falling noise levels, the last one 0 (Karras et al. 2022, eq. 5), float64.

    Args:
        steps: number of sampler steps, at least 2.
        sigma_min: the last level above 0.
        sigma_max: the first level.
        rho: how much the steps gather at low noise.
        through: a level inside the range that the grid shall contain: the nearest one is moved there.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    if sigma_min < through < sigma_max and steps > 2:
        inner = (sigmas[1:-1].log() - math.log(through)).abs().argmin() + 1
        sigmas[inner] = through
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sample(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Heun sampler (Karras et al. 2022, Algorithm 2): two evaluations a step, one in the step that ends at 0.

    Args:
        denoise: D(x, sigma) with x [batch, ...] and sigma [batch].
        noise: standard normal numbers [batch, ...]; the trajectory starts at noise * sigmas[0].
        sigmas: falling noise levels; the trajectory ends at the last one.
        generator: draws the churn's noise; one for all, or one per image.
        on_step: called at the start of every step with x [batch, ...] and its level sigma [batch].
        churn: none is the deterministic sampler.

    Raises:
        ValueError: there is churn, but no generator.

    Returns:
        x at the last level, in the dtype of `noise`; at level 0 the sample in [-1, 1], not clipped.
    """
    if churn is not None and churn.amount > 0 and generator is None:
        raise ValueError("churn needs a generator")
    x = noise * float(sigmas[0])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        if on_step is not None:
            on_step(x, _levels(sigma, x))
        if churn is not None and churn.amount > 0 and generator is not None:
            raised = churn.raised(sigma, len(sigmas) - 1)
            x = x + float((raised**2 - sigma**2).sqrt()) * churn.noise * normal(x.shape, generator, x.device)
            sigma = raised
        x = heun_step(denoise, x, sigma, sigma_next)
    return x


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Follow dx/dsigma = (x - D) / sigma from `sigma` to `sigma_next` (scalars) with the trapezoidal rule."""
    slope = (x - denoise(x, _levels(sigma, x))) / float(sigma)
    step = float(sigma_next - sigma)
    euler = x + step * slope
    if sigma_next == 0:
        return euler
    slope_next = (euler - denoise(euler, _levels(sigma_next, x))) / float(sigma_next)
    return x + step * 0.5 * (slope + slope_next)


def _levels(sigma: Tensor, x: Tensor) -> Tensor:
    """Return one level per image of x: [batch], in the dtype of x."""
    return torch.full((len(x),), float(sigma), dtype=x.dtype, device=x.device)
