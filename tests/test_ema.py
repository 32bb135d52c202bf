"""The running average: what it averages, and all that it leaves alone."""

import torch
from torch import nn

from cdm_lightning.ema import EMA


def trained() -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer


def test_average_follows_the_slow_reference() -> None:
    layer, expected = trained(), torch.zeros(2, 3)
    ema = EMA(layer, decay=0.9)
    for n in range(200):
        value = torch.full((2, 3), float(n % 7))
        with torch.no_grad():
            layer.weight.copy_(value)
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    ema.apply_average()
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_is_kept_to_the_bit() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    ema = EMA(layer, decay=0.999)
    for _ in range(300):
        ema.update()
    ema.apply_average()
    assert torch.equal(layer.weight, before)


def test_it_holds_buffers_of_the_trained_part_and_no_parameters() -> None:
    ema = EMA(trained(), decay=0.9)
    assert list(ema.parameters()) == []
    assert set(ema.state_dict()) == {"updates", "average_0", "average_1"}


def test_a_swap_shows_the_average_and_a_second_one_changes_no_bit() -> None:
    layer = nn.Linear(3, 2)
    ema = EMA(layer, decay=0.9)
    average = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    raw = layer.weight.detach().clone()
    ema.swap()
    assert torch.equal(layer.weight, average)
    ema.swap()
    assert torch.equal(layer.weight, raw)
    assert torch.equal(ema.get_buffer("average_0"), average)
