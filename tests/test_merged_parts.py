"""The benchmark of eight parts. Oracle: points on the line from the backbone through the average of its copies."""

import pytest
import torch
from torch import nn

from benchmarks.merged_parts import further
from cdm_lightning.conv_net import ConvNet
from cdm_lightning.prompts import KINDS
from cdm_lightning.seeding import generator


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_what_lies_further_is_on_the_line_from_the_backbone_through_the_average(scale: float) -> None:
    backbone = ConvNet(8, 1, features=6, width=8)
    backbone.initialize(generator(0, "start"))
    average = KINDS["full"](backbone, classes=2, generator=generator(0, "prompt"))
    for k, parameter in enumerate(average.parameters()):
        nn.init.normal_(parameter, generator=generator(0, k))
    before, found = (prompt.state_dict() for prompt in (average, further(backbone, average, scale)))
    start = {f"copy.{name}": tensor for name, tensor in backbone.state_dict().items()}
    assert set(start) < set(found)
    for name, tensor in before.items():
        begin = start.get(name, torch.zeros_like(tensor))
        torch.testing.assert_close(found[name], begin + scale * (tensor - begin))
