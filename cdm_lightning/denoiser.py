"""From a network F to a denoiser D(x; sigma): EDM and VP preconditioning (Karras et al. 2022, Table 1), and guided.

All tensors are float32 or float64; x is [batch, channel, height, width], sigma is [batch] in units of x_0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from cdm_lightning.interpolation import interpolate

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.5
VP_STEPS = 1000
BETA_MIN, BETA_RANGE = 0.1, 19.9
SCALED_BETA_MIN, SCALED_BETA_MAX = 0.00085, 0.012


class Network(Protocol):
    """A network F as the denoisers call it: a backbone, or one with prompts; see `Backbone.forward`."""

    def __call__(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor: ...


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """Reshape `value` [batch] so that it multiplies x [batch, ...] image by image."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def single(sigma: float) -> float:
    """Return a noise level as float32 holds it, so that a switch compares equal to the level of a grid it is put in."""
    return float(torch.tensor(sigma, dtype=torch.float32))


class Preconditioning(ABC):
    """The coefficients of D(x; sigma) = c_skip x + c_out F(c_in x, c_noise): each maps sigma [batch] to [batch]."""

    @abstractmethod
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Return the share of x in D."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """Return, up to its sign, the error that F of unit size makes; the loss divides by it."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """Return the factor that brings x to the size that F expects."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return the noise level as F expects it, from 0 to about 1000."""


class EDM(Preconditioning):
    """Input and target of F have unit variance (Karras et al. 2022, Table 1, EDM)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Return sigma_data^2 / (sigma^2 + sigma_data^2)."""
        return SIGMA_DATA**2 / (sigma.square() + SIGMA_DATA**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Return sigma sigma_data / sqrt(sigma^2 + sigma_data^2)."""
        return sigma * SIGMA_DATA / (sigma.square() + SIGMA_DATA**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Return 1 / sqrt(sigma^2 + sigma_data^2)."""
        return (sigma.square() + SIGMA_DATA**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Map ln sigma from [ln SIGMA_MIN, ln SIGMA_MAX] to [0, 1000], the scale of U-ViT's time embedding."""
        return 1000.0 * (sigma / SIGMA_MIN).log() / math.log(SIGMA_MAX / SIGMA_MIN)


@dataclass(frozen=True)
class VP(Preconditioning):
    """F predicts the noise in x / sqrt(sigma^2 + 1) (Karras et al. 2022, Table 1, VP).

    Attributes:
        time: c_noise, the time 0..999 at which the schedule of F has the noise level sigma.
    """

    time: Callable[[Tensor], Tensor]

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Return -sigma."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """Return 1 / sqrt(sigma^2 + 1)."""
        return (sigma.square() + 1).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return (M - 1) t for the t in 0..1 that has noise level sigma, M = 1000."""
        return self.time(sigma)


def linear_time(sigma: Tensor) -> Tensor:
    """Return (M - 1) t [batch] for sigma(t)^2 = exp(beta_range t^2 / 2 + beta_min t) - 1 (Karras et al. 2022, Table 1).

    The linear schedule in continuous time, beta from 0.1 to 20 (Song et al. 2021): the public U-ViTs of pixels were
    trained with it. Time 999 is sigma 152; higher levels go on beyond it.
    """
    exponent = sigma.square().log1p()
    root = (BETA_MIN**2 + 2 * BETA_RANGE * exponent).sqrt()
    return (VP_STEPS - 1) * 2 * exponent / (BETA_MIN + root)


def scaled_linear_time(sigma: Tensor) -> Tensor:
    """Return the place [batch] of sigma among the levels of `scaled_linear_sigmas`, between two of them in log sigma.

    Levels below the first one (0.029) are time 0, levels above the last one (14.6) are time 999.
    """
    table = scaled_linear_sigmas().to(sigma)
    return interpolate(sigma.log(), table.log(), torch.arange(VP_STEPS, device=sigma.device).to(sigma))


@cache
def scaled_linear_sigmas() -> Tensor:
    """Return sqrt((1 - a_t) / a_t) [1000], a_t = prod_{s<=t} (1 - beta_s), sqrt(beta) linear (Rombach et al. 2022)."""
    ends = SCALED_BETA_MIN**0.5, SCALED_BETA_MAX**0.5
    beta = torch.linspace(*ends, VP_STEPS, dtype=torch.float64).square()
    a = (1 - beta).cumprod(0)
    return ((1 - a) / a).sqrt()


PreconditioningName = Literal["edm", "vp", "vp_scaled_linear"]
PRECONDITIONINGS: Mapping[PreconditioningName, Preconditioning] = {
    "edm": EDM(),
    "vp": VP(linear_time),
    "vp_scaled_linear": VP(scaled_linear_time),
}


def denoise(preconditioning: Preconditioning, network: Network, x: Tensor, sigma: Tensor) -> Tensor:
    """Return D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, eq. 7)."""
    c_skip, c_out, c_in = (
        per_image(c(sigma), x) for c in (preconditioning.c_skip, preconditioning.c_out, preconditioning.c_in)
    )
    output = network(c_in * x, preconditioning.c_noise(sigma))
    return c_skip * x + c_out * output.to(x.dtype)


def guided_denoise(
    preconditioning: Preconditioning, network: Network, x: Tensor, sigma: Tensor, draft: Tensor, error: Tensor
) -> Tensor:
    """Return D(x; sigma) = G + r F(c_in x, c_noise, G, (x - G) / sigma): F adds what the draft G lacks.

    Args:
        preconditioning: of c_in and c_noise; the draft and its error take the place of c_skip and c_out.
        network: F.
        x: noised images.
        sigma: their noise levels.
        draft: G(x; sigma), shaped as x, a closed form's denoised images.
        error: r [batch], the root mean square error to expect of the draft; the loss divides by it.
    """
    c_in = per_image(preconditioning.c_in(sigma), x)
    output = network(c_in * x, preconditioning.c_noise(sigma), guide=guide_of(x, sigma, draft))
    return draft + per_image(error, x) * output.to(x.dtype)


def guide_of(x: Tensor, sigma: Tensor, draft: Tensor) -> Tensor:
    """Return what a guided network is shown: draft and residual (G, (x - G) / sigma) [batch, 2 channel, ...]."""
    return torch.cat([draft, (x - draft) / per_image(sigma, x)], dim=1)


def score(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return grad log p(x; sigma) = (D - x) / sigma^2 (Tweedie)."""
    return (denoised - x) / per_image(sigma, x).square()
