"""What a closed form knows of an image beside its draft: how unsure it is of every pixel."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cdm_lightning.conv_net import ConvNet
from cdm_lightning.denoiser import Network, per_image
from cdm_lightning.gaussians import Gaussians

Knowledge = Callable[[Gaussians, Tensor, Tensor], Tensor]


def between(form: Gaussians, x: Tensor, sigma: Tensor) -> Tensor:
    """Return how far the components are apart in every pixel, shaped as x: the root of sum_k w_k (D_k - D)^2.

    w_k are the posterior weights of the components given x, D_k their denoised images, D = sum_k w_k D_k.
    """
    log_joint, denoised = form.explain(x, sigma)
    square = torch.zeros_like(x)
    for k, weight in enumerate(log_joint.softmax(0)):
        square += per_image(weight, x) * (_component(form, k).denoise(x, sigma) - denoised).square()
    return square.sqrt()


def deviation(form: Gaussians, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the standard deviation of x_0 given x in every pixel, shaped as x: between the components and in them."""
    weights, noise = form.explain(x, sigma)[0].softmax(0), sigma.square()[:, None]
    square = between(form, x, sigma).square()
    for weight, basis, variance, rest in zip(weights, form.basis, form.variance, form.rest, strict=True):
        left, left_along = rest * noise / (rest + noise), variance * noise / (variance + noise)
        own = left * (1 - basis.square().sum(1)) + left_along @ basis.square().T
        square += per_image(weight, x) * own.reshape(x.shape)
    return square.sqrt()


def _component(form: Gaussians, k: int) -> Gaussians:
    return Gaussians.from_tensors({name: tensor[k : k + 1] for name, tensor in form.tensors().items()}, form.shape)


KNOWLEDGE: dict[str, Knowledge] = {"between": between, "deviation": deviation}


def widen(network: nn.Module) -> None:
    """Give a guided network, not yet initialized, one input more for each channel of an image."""
    assert isinstance(network, ConvNet)
    entering, leaving = network.enter.in_channels, network.enter.out_channels
    network.enter = nn.Conv2d(entering // 3 * 4, leaving, 3, padding=1)


def beside(network: Network, known: Tensor) -> Network:
    """Return the network, which is shown `known` [batch, channel, ...] beside draft and residual."""
    return partial(_beside, network, known)


def _beside(network: Network, known: Tensor, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
    assert guide is not None
    return network(x, time, guide=torch.cat([guide, known], dim=1))
