"""How well denoisers do on images that they have not seen."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import per_image
from cdm_lightning.images import from_uint8, spread
from cdm_lightning.seeding import generator

SIGMAS = (5.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
BATCH = 128
COMPOSED_SIGMA, COMPOSED_IMAGES = 0.3, 8


def heldout_error(
    denoise: Callable[[Tensor, Tensor], Tensor], x_0: Tensor, sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> list[float]:
    """Return the mean square error of `denoise` at every noise level, in units of x_0 squared.

    Args:
        denoise: D(x [batch, ...], sigma [batch]).
        x_0: held-out images [n, channel, height, width] in [-1, 1].
        sigmas: noise levels.
        seed: of the noise, which is the same for every denoiser and every level.
    """
    noise = torch.randn(x_0.shape, generator=generator(seed, "heldout")).to(x_0)
    errors = []
    with torch.inference_mode():
        for sigma in sigmas:
            total = 0.0
            for clean, some in zip(x_0.split(BATCH), noise.split(BATCH), strict=True):
                level = clean.new_full((len(clean),), sigma)
                total += float((denoise(clean + per_image(level, clean) * some, level) - clean).square().sum())
            errors.append(total / x_0.numel())
    return errors


def heldout_errors(
    compartments: Compartments, images: Mapping[str, Tensor], sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Return, by source, the error at every noise level of its closed form and of the network that finishes it.

    Args:
        compartments: with `sigma_switch` inf, so that the network is evaluated at every level.
        images: held-out images by source.
        sigmas: noise levels.
        seed: of the noise.
    """
    return {
        source: {
            "closed_form": heldout_error(compartments.closed_forms[source].denoise, x_0, sigmas, seed),
            "network": heldout_error(compartments[source], x_0, sigmas, seed),
        }
        for source, x_0 in images.items()
    }


def composed_errors(composed: ComposedDenoiser, held_out: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the composed model's error at sigma 0.3 on a few held-out images of each of its sources that has any.

    Args:
        composed: the model.
        held_out: uint8 [n, channel, height, width] by source; those of other sources are not looked at.
    """
    images = {
        source: from_uint8(spread(held_out[source], COMPOSED_IMAGES))
        for source in composed.sources
        if len(held_out.get(source, ()))
    }
    return {source: heldout_error(composed, x_0, [COMPOSED_SIGMA])[0] for source, x_0 in images.items()}
