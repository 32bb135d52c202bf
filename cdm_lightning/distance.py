"""How far a composed denoiser is from the ideal one: what its parts cost, and what its weights cost.

With the ideal pairs D* = sum_i w_i* D_i*, for any D = sum_i w_i D_i

    D - D* = sum_i w_i (D_i - D_i*) + sum_i (w_i - w_i*) D_i*

so that |D - D*| <= sum_i w_i |D_i - D_i*| + |sum_i (w_i - w_i*) D_i*| for every image and noise level (triangle
inequality). |.| is the root of the sum of squares over an image, in units of x_0.
"""

import torch
from torch import Tensor


def compartments_term(weights: Tensor, denoised: Tensor, ideal: Tensor) -> Tensor:
    """Return sum_i w_i |D_i - D_i*| [batch]: what remains of the bound when the weights are ideal.

    Args:
        weights: w [source, batch], at least 0, of sum 1 over sources.
        denoised: D_i(x; sigma) [source, batch, ...].
        ideal: D_i*(x; sigma), shaped as `denoised`.
    """
    apart: Tensor = (denoised - ideal).flatten(2).norm(dim=2)
    return (weights * apart).sum(0)


def weights_term(weights: Tensor, ideal_weights: Tensor, ideal: Tensor) -> Tensor:
    """Return |sum_i (w_i - w_i*) D_i*| [batch]: the distance itself when every D_i is ideal.

    Args:
        weights: w [source, batch], of sum 1 over sources.
        ideal_weights: w* [source, batch], of sum 1 over sources.
        ideal: D_i*(x; sigma) [source, batch, ...].
    """
    apart: Tensor = torch.einsum("sb,sb...->b...", weights - ideal_weights, ideal).flatten(1).norm(dim=1)
    return apart
