"""Credit: the posterior weights of an image's possible sources, under the Gaussian mixtures."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.seeding import generator

DRAWS = 16


def credits_of(composed: ComposedDenoiser, x_0: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Return the mean of w(x_0 + sigma * noise; sigma) over 16 fixed noise draws: [source, batch], columns sum to 1.

    Args:
        composed: gives the weights.
        x_0: [batch, channel, height, width] in [-1, 1].
        sigma: the noise level; at the floor of the calibration it says most.
        seed: of the draws, which are the same for every image.
    """
    level = x_0.new_full((len(x_0),), sigma)
    total = torch.zeros(len(composed.sources), len(x_0), device=x_0.device)
    for draw in range(DRAWS):
        noise = torch.randn(x_0.shape[1:], generator=generator(seed, "credits", draw)).to(x_0)
        total += composed.weights(x_0 + sigma * noise, level)
    return total / DRAWS


def attribution_matrix(weights: Sequence[Tensor]) -> Tensor:
    """Return the mean weight [true source, credited source] of `weights`, one [source, batch] per true source."""
    return torch.stack([weight.mean(1) for weight in weights])


def cross_entropy(weights: Sequence[Tensor]) -> float:
    """Return -log of the true source's weight in nats, averaged over all images of `weights` [source, batch] each."""
    losses = [-weight[true].clamp_min(1e-30).log() for true, weight in enumerate(weights)]
    return float(torch.cat(losses).mean())


def is_informative(loss: float, sources: int) -> bool:
    """Return whether a held-out cross-entropy is below that of knowing nothing, ln N."""
    return loss < math.log(sources)
