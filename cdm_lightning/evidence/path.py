"""Evidence filtered along a path of falling noise: `path`, a baseline that needs all denoisers at every step."""

from collections.abc import Callable

import torch
from torch import Tensor

from cdm_lightning.denoiser import per_image, score


def path_log_density(
    denoise: Callable[[Tensor, Tensor], Tensor], path: Tensor, sigmas: Tensor, start: Tensor
) -> Tensor:
    """Return the log density [level, batch] of a path down to each level, up to a constant common to all sources.

    From level s to t < s a stochastic sampler of the source goes to a normal law of mean x + v grad log p_i(x; s) and
    variance v = s^2 - t^2 (Euler-Maruyama), so the path's log density grows by -|x' - mean|^2 / (2 v): the Ito density
    estimator of Skreta et al. (2025, arXiv 2412.17762), in discrete form. The noise of a path says nothing of its
    source, so on noised images the posterior tends to that of the last level as the steps grow.

    Args:
        denoise: D_i(x [batch, ...], sigma [batch]) of the source.
        path: [level, batch, channel, height, width], at falling noise.
        sigmas: [level], falling.
        start: [batch], log p_i at the first level, such as the closed form's.
    """
    total = [start]
    for x, after, s, t in zip(path[:-1], path[1:], sigmas[:-1], sigmas[1:], strict=True):
        level = s.to(x).expand(len(x))
        variance = s.square() - t.square()
        mean = x + per_image(variance.to(x).expand(len(x)), x) * score(x, denoise(x, level), level)
        total.append(total[-1] - (after - mean).flatten(1).square().sum(1) / (2 * float(variance)))
    return torch.stack(total)
