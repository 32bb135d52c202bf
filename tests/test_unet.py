"""The U-Net backbone. Oracles: images one by one, blocks by hand, a prompt as another level, a draft without weight."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from cdm_lightning.compartments import Compartments
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Featured
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from cdm_lightning.unet import UNet
from tests.conftest import Fit
from tests.test_conv_net import bare

SMALL = ("--model.backbone", "cdm_lightning.unet.UNet", "--model.backbone.init_args.features", "[8,16]")


def made(image_size: int = 8, guided: bool = False) -> UNet:
    """Return a network of random weights, in which everything matters."""
    network = UNet(image_size, 1, guided, features=(8, 16), width=8)
    network.initialize(generator(0, "start"))
    for k, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=generator(0, k))
    return network


def images(n: int, size: int, channels: int = 1) -> Tensor:
    return torch.randn(n, channels, size, size, generator=generator("x", channels))


def test_at_its_start_it_adds_nothing_and_a_seed_is_a_start() -> None:
    networks = [UNet(8, 3, False, features=(8, 16), width=8) for _ in range(2)]
    for network in networks:
        network.initialize(generator(0, "start"))
    assert not networks[0](images(2, 8, 3), torch.tensor([10.0, 900.0])).any()
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_parameter_is_drawn_afresh() -> None:
    """Also the scales of normalizations, which training has changed."""
    used, fresh = made(), UNet(8, 1, False, features=(8, 16), width=8)
    for network in (used, fresh):
        network.initialize(generator(0, "start"))
    expected = fresh.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in used.state_dict().items())


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("guided", [True, False])
def test_every_image_is_as_if_it_were_alone(size: int, guided: bool) -> None:
    network, x, time = made(size, guided), images(3, size), torch.tensor([10.0, 300.0, 900.0])
    guide = images(3, size, 2) if guided else None
    together = network(x, time, guide=guide)
    alone = [network(x[k : k + 1], time[k : k + 1], guide=guide[k : k + 1] if guided else None) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert together.shape == x.shape
    assert (network(x, time.flip(0), guide=guide) - together).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-2


def test_a_pixel_sees_the_whole_image() -> None:
    network, x = made(16), images(1, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, torch.tensor([300.0]))[0, 0, 0, 0], x)
    assert (gradient != 0).all()


def test_two_resolutions_written_out() -> None:
    """The way down and up by hand, block by block, from the equations in the paper's appendix B."""
    network, x, time = made(), images(2, 8), torch.tensor([10.0, 900.0])
    angle = time[:, None] * 10000 ** (-torch.arange(4) / 4)
    level = network.embed(torch.cat([angle.cos(), angle.sin()], dim=1))
    (high, low), (first, second), (up_low, up_high) = network.down, network.middle, network.up
    fine = high(network.enter(x), level)
    coarse = low(avg_pool2d(fine, 2), level)
    deep = second(first(coarse, level), level)
    risen = up_low(torch.cat([deep, coarse], 1), level)
    last = up_high(torch.cat([interpolate(risen, scale_factor=2), fine], 1), level)
    torch.testing.assert_close(network(x, time), network.leave(silu(network.norm(last))), rtol=1e-4, atol=1e-5)


def test_a_draft_without_weight_changes_nothing() -> None:
    """A guided network whose first convolution ignores the draft is the plain one of the same weights."""
    guided, plain, x, time = made(guided=True), made(), images(2, 8), torch.tensor([10.0, 900.0])
    state = guided.state_dict()
    plain.load_state_dict(state | {"enter.weight": state["enter.weight"][:, :1]})
    guide = images(2, 8, 2)
    assert (guided(x, time, guide=guide) - plain(x, time)).abs().max() > 1e-2
    with torch.no_grad():
        guided.enter.weight[:, 1:] = 0
    torch.testing.assert_close(guided(x, time, guide=guide), plain(x, time), rtol=1e-4, atol=1e-5)


def test_a_prompt_is_another_embedding_of_the_level() -> None:
    """Tokens that turn the embedding of one level into that of another one make the network take it for the other."""
    network, x, time = made(), images(4, 8), torch.linspace(10, 900, 4)
    difference = network._embedding(time.flip(0)) - network._embedding(time)
    prompt = (difference / 2)[:, :, None].expand(-1, -1, 2, -1)
    assert prompt.shape[1:] == (network.prompt_shape[0], 2, network.prompt_shape[1])
    torch.testing.assert_close(network(x, time, prompt=prompt), network(x, time.flip(0)), rtol=1e-4, atol=1e-4)


def test_every_block_has_a_token_of_its_own() -> None:
    network, x, time = made(), images(1, 8), torch.tensor([300.0])
    layers, width = network.prompt_shape
    outputs = [network(x, time)]
    for k in range(layers):
        prompt = torch.zeros(1, layers, 1, width)
        prompt[:, k] = 1
        outputs.append(network(x, time, prompt=prompt))
    changed = torch.stack(outputs)
    assert torch.pdist(changed.flatten(1)).min() > 1e-3


@pytest.mark.parametrize("guided", [True, False])
def test_features_are_what_the_middle_ends_with(guided: bool) -> None:
    network, x, time, read = made(8, guided), images(3, 8), torch.tensor([10.0, 300.0, 900.0]), []
    guide = images(3, 8, 2) if guided else None
    handle = network.middle[-1].register_forward_hook(lambda module, inputs, output: read.append(output))
    network(x, time, guide=guide)
    handle.remove()
    quarters = [read[0][:, :, row : row + 2, column : column + 2].mean((2, 3)) for row in (0, 2) for column in (0, 2)]
    expected = torch.cat([torch.stack(quarters, 2).flatten(1), read[0].std((2, 3), correction=0)], dim=1)
    torch.testing.assert_close(network.features(x, time, guide=guide), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(network, Featured)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"features": []}, r"init_args.features are \[\]; expected at least one, each a multiple of 8"),
        ({"features": [8, 12]}, r"init_args.features are \[8, 12\]; expected at least one, each a multiple of 8"),
        ({"features": [8] * 6}, "init_args.features are of 6 resolutions, and images of 32 pixels can't be halved"),
        ({"width": 7}, "init_args.width is 7; expected an even number"),
    ],
)
def test_sizes_out_of_range_are_told(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        UNet(**sizes)  # type: ignore[arg-type]


def test_a_store_on_it(fit: Fit, tmp_path: Path) -> None:
    """What is opened is what was fitted: a plain network with a full copy, and tokens, each of which takes part."""
    store = tmp_path / "store"
    plain = ("--model.guide", "none", "--model.sigma_switch", "inf")
    for source, kind in (("digit0", "tokens"), ("digit1", "full")):
        assert fit(store, f"[{source}]", *SMALL, *plain, "--model.compartment", kind, "--trainer.max_steps", "5") == 0
    opened: Compartments = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    assert isinstance(opened.backbone, UNet)
    assert opened.backbone.init_args["features"] == [8, 16]
    x, sigma = images(2, 8), torch.full((2,), 0.3)
    with torch.inference_mode():
        for source in ("digit0", "digit1"):
            assert (opened[source](x, sigma) - bare(opened, source)[source](x, sigma)).abs().max() > 1e-5
