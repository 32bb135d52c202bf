"""The convolutional backbone. Oracles: the reach of dilations, pieces one by one, a prompt as another embedding."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdm_lightning.compartments import Compartments
from cdm_lightning.conv_net import ConvNet
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Featured
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from cdm_lightning.uvit_layers import sinusoidal_embedding
from tests.conftest import Fit

BACKBONE = ("--model.backbone", "cdm_lightning.conv_net.ConvNet")
SMALL = ("--model.backbone.init_args.features", "6", "--model.backbone.init_args.width", "8")


def made(guided: bool = True, image_size: int = 8, dilations: tuple[int, ...] = (1, 2)) -> ConvNet:
    """Return a network of random weights, in which everything matters."""
    network = ConvNet(image_size, 1, guided, features=6, dilations=dilations, width=8)
    network.initialize(generator(0, "start"))
    for k, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator(0, k))
    return network


def inputs(n: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x, guide = (torch.randn(n, channels, size, size, generator=generator("x", channels)) for channels in (1, 2))
    return x, torch.linspace(10, 900, n), guide


def bare(opened: Compartments, source: str) -> Compartments:
    """Return the compartments of a source without its prompt."""
    return opened.with_sources({source: replace(opened.compartments[source], prompt=None)})


def test_at_its_start_it_adds_nothing() -> None:
    network, (x, time, guide) = ConvNet(8, 1, features=6, width=8), inputs(3)
    network.initialize(generator(0))
    assert not network(x, time, guide=guide).any()


def test_a_pixel_sees_as_far_as_the_dilations_reach() -> None:
    network, (x, time, guide) = made(image_size=31, dilations=(1, 2, 4, 1)), inputs(1, 31)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, time, guide=guide)[0, 0, 15, 15], x)
    reached = gradient[0, 0].nonzero()
    assert reached.amin(0).tolist() == [15 - 10] * 2
    assert reached.amax(0).tolist() == [15 + 10] * 2


@pytest.mark.parametrize("guided", [True, False])
def test_every_image_is_as_if_it_were_alone(guided: bool) -> None:
    """Without gradients the images go in pieces, with gradients together."""
    network, (x, time, guide) = made(guided), inputs(11)
    given = guide if guided else None
    together = network(x, time, guide=given).detach()
    with torch.inference_mode():
        in_pieces = network(x, time, guide=given)
        alone = [network(x[k : k + 1], time[k : k + 1], guide=guide[k : k + 1] if guided else None) for k in range(11)]
    torch.testing.assert_close(in_pieces, together)
    torch.testing.assert_close(torch.cat(alone), together)
    assert (network(x, time.flip(0), guide=given) - together).abs().amax((1, 2, 3))[[0, -1]].min() > 1e-2


@pytest.mark.parametrize("guided", [True, False])
def test_features_are_what_the_last_layer_reads_by_cells(guided: bool) -> None:
    network, (x, time, guide), read = made(guided, 14), inputs(3, 14), []
    given = guide if guided else None
    handle = network.leave.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    network(x, time, guide=given)
    handle.remove()
    starts = range(0, 14, 2)
    cells = [read[0][:, :, row : row + 2, column : column + 2] for row in starts for column in starts]
    means = torch.stack([cell.mean((2, 3)) for cell in cells], dim=2).flatten(1)
    expected = torch.cat([means, read[0].std((2, 3), correction=0)], dim=1)
    torch.testing.assert_close(network.features(x, time, guide=given), expected, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(network.features(x, time, guide=given), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(network, Featured)


def test_a_prompt_is_another_embedding_of_the_level() -> None:
    """Tokens that turn the embedding of one level into that of another one make the network take it for the other."""
    network, (x, time, guide) = made(), inputs(4)
    difference = sinusoidal_embedding(time.flip(0), 8) - sinusoidal_embedding(time, 8)
    prompt = (difference / 2)[:, None, None].expand(-1, 3, 2, -1)
    found, expected = network(x, time, guide=guide, prompt=prompt), network(x, time.flip(0), guide=guide)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert network.prompt_shape == (3, 8)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"features": 0}, "init_args.features is 0; expected at least 1"),
        ({"dilations": []}, r"init_args.dilations are \[\]; expected at least one"),
        ({"dilations": [1, 0]}, r"init_args.dilations are \[1, 0\]; expected at least one, each at least 1"),
        ({"width": 7}, "init_args.width is 7; expected an even number"),
    ],
)
def test_sizes_out_of_range_are_told(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        ConvNet(**sizes)  # type: ignore[arg-type]


def test_a_store_on_it(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is opened denoises as what was trained, tokens and full copies take part, and a head is refused."""
    store = tmp_path / "store"
    for source, kind in (("digit0", "none"), ("digit1", "tokens"), ("digit2", "full")):
        prompt = ("--model.compartment", kind, "--trainer.max_steps", "5")
        assert fit(store, f"[{source}]", *BACKBONE, *SMALL, *prompt) == 0
    opened = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    assert isinstance(opened.backbone, ConvNet)
    assert opened.backbone.init_args["dilations"] == [1, 2, 4, 1]
    assert Store.open(store).read_backbone()[1]["learning_rate"] == 4e-3  # what suits it, since none was given
    x, sigma = torch.randn(2, 1, 8, 8, generator=generator("x")), torch.full((2,), 0.3)
    with torch.inference_mode():
        for source in ("digit1", "digit2"):
            prompted = opened[source](x, sigma)
            assert (prompted - bare(opened, source)[source](x, sigma)).abs().max() > 1e-5
    again = Path(shutil.copytree(store, tmp_path / "again"))
    assert fit(again, "[digit3]", *BACKBONE, *SMALL, "--model.compartment", "head") == 2
    assert "trains a copy of the convolutions of a guided UViT, and this backbone has none" in capsys.readouterr().err
