"""Samplers over a callable `denoise(x, sigma)`; they know nothing else, so composition needs no change here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from cdm_lightning.seeding import normal
from cdm_lightning.solvers import Denoise, Generators, Multistep, ancestral_step, heun_step, levels

Method = Literal["heun", "dpmpp_2m", "ancestral"]
OnStep = Callable[[Tensor, Tensor], None]
Step = Callable[[Denoise, Tensor, Tensor, Tensor], Tensor]


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
    method: Method = "heun",
    generator: Generators | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
    jump: float = math.inf,
) -> Tensor:
    """Follow a trajectory from noise to image; see `cdm_lightning.solvers` for the step of each method.

    Args:
        denoise: D(x, sigma) with x [batch, ...] and sigma [batch].
        noise: standard normal numbers [batch, ...]; the trajectory starts at noise * sigmas[0].
        sigmas: falling noise levels; the trajectory ends at the last one.
        method: `heun`: two evaluations of D a step, one in the step that ends at 0. `dpmpp_2m`: DPM-Solver++(2M), and
            `ancestral`, which adds noise in every step: one evaluation a step.
        generator: draws the noise of the churn or of `ancestral`; one for all, or one per image.
        on_step: called at the start of every step with x [batch, ...] and its level sigma [batch].
        churn: of `heun`; none is the deterministic sampler.
        jump: a level: from the first step that starts there or below, `denoise` is another function. `dpmpp_2m` then
            forgets its values of the former one.

    Raises:
        ValueError: unknown method, churn with another method than `heun`, or noise without a generator.

    Returns:
        x at the last level, in the dtype of `noise`; at level 0 the sample in [-1, 1], not clipped.
    """
    step = _step_of(method, generator, churn, len(sigmas) - 1, jump)
    x = noise * float(sigmas[0])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        if on_step is not None:
            on_step(x, levels(sigma, x))
        x = step(denoise, x, sigma, sigma_next)
    return x


def _step_of(method: Method, generator: Generators | None, churn: Churn | None, steps: int, jump: float) -> Step:
    """Return what makes each of the `steps` steps of one trajectory."""
    churn = None if churn is None or churn.amount <= 0 else churn
    if method not in get_args(Method):
        raise ValueError(f"unknown method '{method}'; expected one of {get_args(Method)}")
    if churn is not None and method != "heun":
        raise ValueError(f"churn is of heun alone, not of {method}")
    if method == "dpmpp_2m":
        return Multistep(jump).step
    if method == "heun" and churn is None:
        return heun_step
    if generator is None:
        raise ValueError(f"{'ancestral' if churn is None else 'churn'} needs a generator")
    if churn is None:
        return partial(ancestral_step, generator=generator)
    return partial(_churned_heun_step, churn=churn, steps=steps, generator=generator)


def _churned_heun_step(
    denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, *, churn: Churn, steps: int, generator: Generators
) -> Tensor:
    """Raise the noise, then follow the ODE from there (Karras et al. 2022, Algorithm 2)."""
    raised = churn.raised(sigma, steps)
    x = x + float((raised**2 - sigma**2).sqrt()) * churn.noise * normal(x.shape, generator, x.device)
    return heun_step(denoise, x, raised, sigma_next)
