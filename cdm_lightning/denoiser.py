"""From a network F to a denoiser D(x; sigma): EDM preconditioning (Karras et al. 2022, Table 1), and guided by a draft.

All tensors are float32 or float64; x is [batch, channel, height, width], sigma is [batch] in units of x_0.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.5


class Network(Protocol):
    """A network F as the denoisers call it; see `Backbone.forward`."""

    def __call__(
        self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None
    ) -> Tensor: ...


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """Reshape `value` [batch] so that it multiplies x [batch, ...] image by image."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def single(sigma: float) -> float:
    """Return a noise level as float32 holds it, so that a switch compares equal to the level of a grid it is put in."""
    return float(torch.tensor(sigma, dtype=torch.float32))


def network_time(sigma: Tensor) -> Tensor:
    """Map ln sigma from [ln SIGMA_MIN, ln SIGMA_MAX] to [0, 1000], the scale that U-ViT's time embedding expects."""
    return 1000.0 * (sigma / SIGMA_MIN).log() / math.log(SIGMA_MAX / SIGMA_MIN)


def edm_scale(sigma: Tensor) -> Tensor:
    """Return c_out(sigma) [batch]: the error that F of unit size makes; the loss divides by it."""
    return sigma * SIGMA_DATA / (sigma.square() + SIGMA_DATA**2).sqrt()


def edm_denoise(network: Network, x: Tensor, sigma: Tensor, *, prompt: Tensor | None = None) -> Tensor:
    """Return D(x; sigma) = c_skip x + c_out F(c_in x, c_noise; prompt) (Karras et al. 2022, Table 1, EDM)."""
    total = sigma.square() + SIGMA_DATA**2
    c_skip, c_in = per_image(SIGMA_DATA**2 / total, x), per_image(total.rsqrt(), x)
    output = network(c_in * x, network_time(sigma), prompt=prompt)
    return c_skip * x + per_image(edm_scale(sigma), x) * output.to(x.dtype)


def guided_denoise(
    network: Network, x: Tensor, sigma: Tensor, draft: Tensor, error: Tensor, *, prompt: Tensor | None = None
) -> Tensor:
    """Return D(x; sigma) = G + r F(c_in x, G, (x - G) / sigma; prompt): F adds what the draft G lacks.

    Args:
        network: F.
        x: noised images.
        sigma: their noise levels.
        draft: G(x; sigma), shaped as x, a closed form's denoised images.
        error: r [batch], the root mean square error to expect of the draft; the loss divides by it.
        prompt: [batch, layer, token, width], if the source has one.
    """
    c_in = per_image((sigma.square() + SIGMA_DATA**2).rsqrt(), x)
    guide = torch.cat([draft, (x - draft) / per_image(sigma, x)], dim=1)
    output = network(c_in * x, network_time(sigma), guide=guide, prompt=prompt)
    return draft + per_image(error, x) * output.to(x.dtype)


def score(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return grad log p(x; sigma) = (D - x) / sigma^2 (Tweedie)."""
    return (denoised - x) / per_image(sigma, x).square()
