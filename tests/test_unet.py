"""The plain U-Net of the quality benchmark. Oracles: its start, images one by one, a shift of the image."""

import pytest
import torch
from torch import nn

from cdm_lightning.unet import UNet
from cdm_lightning.seeding import generator


def made(image_size: int) -> UNet:
    """Return a network of random weights, in which everything matters."""
    network = UNet(image_size, 1, False, features=(8, 16), width=8)
    network.initialize(generator(0, "start"))
    for k, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=generator(0, k))
    return network


def test_at_its_start_it_adds_nothing_and_a_seed_is_a_start() -> None:
    networks = [UNet(8, 3, False, features=(8, 16), width=8) for _ in range(2)]
    for network in networks:
        network.initialize(generator(0, "start"))
    x, time = torch.randn(2, 3, 8, 8, generator=generator("x")), torch.tensor([10.0, 900.0])
    assert not networks[0](x, time).any()
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("size", [8, 7])
def test_every_image_is_as_if_it_were_alone(size: int) -> None:
    network, x = made(size), torch.randn(3, 1, size, size, generator=generator("x"))
    time = torch.tensor([10.0, 300.0, 900.0])
    together = network(x, time)
    alone = torch.cat([network(x[k : k + 1], time[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == x.shape
    assert (network(x, time.flip(0)) - together).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-2


def test_a_pixel_sees_the_whole_image() -> None:
    network, x = made(16), torch.randn(1, 1, 16, 16, generator=generator("x")).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, torch.tensor([300.0]))[0, 0, 0, 0], x)
    assert (gradient != 0).all()
