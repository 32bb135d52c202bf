"""The optimizers. Oracles: singular value decompositions, Adam's first step, torch's AdamW."""

import math

import pytest
import torch
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone, UViT
from cdm_lightning.conv_net import ConvNet
from cdm_lightning.optimizers import OptimizerName, optimizer_for
from cdm_lightning.prompts import Full, LoRA, Prompt, Tokens
from cdm_lightning.unet import UNet

RATE = 0.01
NETWORKS: dict[str, Backbone] = {
    "transformer": UViT(8, 1, True, patch_size=4, width=16, depth=3, heads=2, classes=3),
    "ConvNet": ConvNet(8, 1, True, features=8, dilations=(1, 2), width=16),
    "U-Net": UNet(8, 1, True, features=(8, 16), width=16),
}


def stepped(
    trained: nn.Module, name: OptimizerName = "muon", steps: int = 1
) -> list[tuple[Tensor, list[Tensor], Tensor]]:
    """Return each parameter before, its gradients, and how far it moved; gradients are drawn anew in each step."""
    g, optimizer = torch.Generator().manual_seed(0), optimizer_for(trained, name, RATE)
    before, gradients = [one.detach().clone() for one in trained.parameters()], list[list[Tensor]]()
    for _ in range(steps):
        for parameter in trained.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=g)
        gradients.append([one.grad for one in trained.parameters() if one.grad is not None])
        optimizer.step()
    moved = [now.detach() - then for now, then in zip(trained.parameters(), before, strict=True)]
    return list(zip(before, [list(one) for one in zip(*gradients, strict=True)], moved, strict=True))


def is_inner(trained: nn.Module) -> list[bool]:
    """Return which parameters are the weights of layers that do not end in the colours of an image."""
    layers = [layer for layer in trained.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    inner = {id(layer.weight) for layer in layers if layer.weight.shape[0] > 3}
    return [id(parameter) in inner for parameter in trained.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_move_alike_in_all_directions_and_all_else_as_by_adam(name: str, whole: bool) -> None:
    backbone = NETWORKS[name]
    backbone.initialize(torch.Generator().manual_seed(1))
    trained: nn.Module = backbone if whole else Full(backbone, 2, torch.Generator().manual_seed(2))
    for weight, (before, (gradient,), moved) in zip(is_inner(trained), stepped(trained), strict=True):
        own = moved + RATE * (0.01 if whole else 0.0) * before
        if not weight:
            torch.testing.assert_close(own, -RATE * gradient.sign(), rtol=1e-3, atol=1e-6)
            continue
        u, _, v = torch.linalg.svd(-gradient.flatten(1), full_matrices=False)
        within = (u.T @ own.flatten(1) @ v.T) / (0.2 * RATE * math.sqrt(max(own.flatten(1).shape)))
        assert 0.9 < float(within.diagonal().median()) < 1.1  # five steps of Newton-Schulz, in bfloat16
        assert 0.2 < float(within.diagonal().min()) <= float(within.diagonal().max()) < 1.3
        assert float((within - within.diagonal().diag()).abs().max()) < 0.1
        assert float((own.flatten(1) - u @ (u.T @ own.flatten(1) @ v.T) @ v).abs().max()) < 0.1 * RATE


@pytest.mark.parametrize("kind", ["tokens", "lora"])
def test_what_is_no_network_takes_the_steps_of_adamw(kind: str) -> None:
    g, backbone = torch.Generator().manual_seed(0), NETWORKS["U-Net"]
    made: Prompt = Tokens(backbone, 2, 0, g) if kind == "tokens" else LoRA(backbone, 2, 0, g)
    found = stepped(made, steps=3)
    for before, gradients, moved in found:
        twin = nn.Parameter(before.clone())
        reference = torch.optim.AdamW([twin], lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
        for gradient in gradients:
            twin.grad = gradient
            reference.step()
        torch.testing.assert_close(moved, twin.detach() - before, rtol=0, atol=0)
