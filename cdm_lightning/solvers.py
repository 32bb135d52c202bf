"""One step of each sampler, from the level `sigma` to the lower level `sigma_next`, both scalars.

Coefficients are computed in float64 and applied in the dtype of x.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdm_lightning.seeding import normal

Denoise = Callable[[Tensor, Tensor], Tensor]
Generators = torch.Generator | Sequence[torch.Generator]


def levels(sigma: Tensor, x: Tensor) -> Tensor:
    """Return one level per image of x [batch, ...]: [batch], in the dtype of x."""
    return torch.full((len(x),), float(sigma), dtype=x.dtype, device=x.device)


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Follow dx/dsigma = (x - D) / sigma with the trapezoidal rule (Karras et al. 2022, Algorithm 1).

    Two evaluations, or one in the step that ends at 0.
    """
    slope = (x - denoise(x, levels(sigma, x))) / float(sigma)
    step = float(sigma_next - sigma)
    euler = x + step * slope
    if sigma_next == 0:
        return euler
    slope_next = (euler - denoise(euler, levels(sigma_next, x))) / float(sigma_next)
    return x + step * 0.5 * (slope + slope_next)


def ancestral_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, *, generator: Generators) -> Tensor:
    """Go down to sigma_down = sigma_next^2 / sigma with a fixed D, then add noise of level sigma_up; one evaluation.

    With sigma_up^2 = sigma_next^2 - sigma_down^2 this draws x_next given x and x_0 = D (Ho et al. 2020,
    arXiv 2006.11239, eqs. 6 and 7, in sigma), as `sample_euler_ancestral` of k-diffusion does at eta 1. The step that
    ends at 0 returns D and draws nothing.
    """
    down = float(sigma_next) ** 2 / float(sigma)
    moved = _towards(denoise(x, levels(sigma, x)), x, down / float(sigma))
    if sigma_next == 0:
        return moved
    up = math.sqrt(float(sigma_next) ** 2 - down**2)
    return moved + up * normal(x.shape, generator, x.device).to(x.dtype)


class Multistep:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2, with alpha = 1 and lambda = -log sigma).

    One evaluation a step: D is extrapolated from its values at this step's level and at the one before. Without one
    before the step is of first order; so is the step that ends at 0, which returns D.

    Args:
        jump: steps that start at this level or below have another `denoise` than those above it: the first of them
            has none before.
    """

    def __init__(self, jump: float = math.inf) -> None:
        self.jump = jump
        self._last: tuple[float, Tensor] | None = None

    def step(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return x at `sigma_next`; call it for one level after the other."""
        denoised = denoise(x, levels(sigma, x))
        ahead, level = denoised, float(sigma)
        if self._last is not None and sigma_next > 0 and not level <= self.jump < self._last[0]:
            level_before, denoised_before = self._last
            half = math.log(level / float(sigma_next)) / math.log(level_before / level) / 2  # 1 / 2r of the paper
            ahead = (1 + half) * denoised - half * denoised_before
        self._last = level, denoised
        return _towards(ahead, x, float(sigma_next) / level)


def _towards(denoised: Tensor, x: Tensor, share: float) -> Tensor:
    """Follow dx/dsigma = (x - D) / sigma exactly for a constant D; `share` is the ratio of the levels."""
    return share * x + (1 - share) * denoised
