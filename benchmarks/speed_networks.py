"""Our U-ViT against other code: a forward pass and a training step, float32 and bfloat16.

Against the public U-ViT, with the same weights; and against diffusers' transformer (`DiTTransformer2DModel`) of the
same width, depth, heads and patches, which has no skip connections, but modulates every block by the time. Neither is
ours nor in this repository: clone github.com/baofff/U-ViT, and install einops for it; and pip install diffusers.
"""

import importlib
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed_rows import BATCH, in_turns
from benchmarks.speed_stores import SIZE
from cdm_lightning.backbone import UViT
from cdm_lightning.seeding import generator

PATCH, WIDTH, DEPTH, HEADS = 4, 128, 5, 4
EQUAL = 1e-4  # the largest difference between two networks of the same weights


def public_network(folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """Return the public network with these weights; `folder` is a checkout of its repository.

    Raises:
        RuntimeError: the weights are not of such a network.
        ModuleNotFoundError: there is no such code, or it lacks einops.
    """
    sys.path.insert(0, str(folder))
    try:
        with redirect_stdout(io.StringIO()):
            kind = importlib.import_module("libs.uvit").UViT
    finally:
        sys.path.remove(str(folder))
    network: nn.Module = kind(
        img_size=SIZE,
        patch_size=PATCH,
        in_chans=1,
        embed_dim=WIDTH,
        depth=DEPTH - 1,  # the middle block does not count there
        num_heads=HEADS,
        mlp_time_embed=True,
    )
    network.load_state_dict(weights)
    return network


def against_public(folder: Path, pairs: int) -> dict[str, Any]:
    """Return the ratios of our seconds to those of the public code, and how far the outputs are apart."""
    ours, (x, time) = our_network(), inputs()
    theirs = public_network(folder, ours.state_dict())
    with torch.inference_mode():
        apart = float((ours(x, time) - theirs(x, time)).abs().max())
    if not apart < EQUAL:
        raise RuntimeError(f"the public network computes something else: its outputs differ by {apart:.2g}")
    return {"apart": apart} | ratios(ours, theirs, pairs)


class Diffusers(nn.Module):
    """diffusers' transformer of our size, called like ours; all images have the same class.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        kind = importlib.import_module("diffusers").DiTTransformer2DModel
        self.transformer = kind(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=1,
            out_channels=1,
            num_layers=DEPTH,
            sample_size=SIZE,
            patch_size=PATCH,
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return what is predicted [batch, channel, height, width]."""
        output: Tensor = self.transformer(x, timestep=time.long(), class_labels=torch.zeros_like(time).long()).sample
        return output


def against_diffusers(pairs: int) -> dict[str, Any]:
    """Return the ratios of our seconds to those of diffusers' transformer, and the parameters of both."""
    ours, theirs = our_network(), Diffusers()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    return {"parameters": counts} | ratios(ours, theirs, pairs)


def our_network() -> UViT:
    """Return our network of random weights."""
    g = generator("speed", "uvit")
    ours = UViT(SIZE, 1, False, PATCH, WIDTH, DEPTH, HEADS, norm_epsilon=1e-5)
    ours.initialize(g)
    nn.init.normal_(ours.final_layer.weight, std=0.1, generator=g)  # type: ignore[arg-type]
    return ours


def inputs() -> tuple[Tensor, Tensor]:
    """Return images [batch, channel, height, width] and times [batch]."""
    g = generator("speed", "inputs")
    return torch.randn(BATCH, 1, SIZE, SIZE, generator=g), 1000 * torch.rand(BATCH, generator=g)


def ratios(ours: nn.Module, theirs: nn.Module, pairs: int) -> dict[str, Any]:
    """Return the ratios of our seconds to theirs, of a forward pass and a step, in float32 and bfloat16."""
    (x, time), found = inputs(), {}
    for kind in (torch.float32, torch.bfloat16):
        for what, action in (("forward", forward), ("step", step)):
            ratio = in_turns(action(ours, x, time, kind), action(theirs, x, time, kind), pairs)
            found[f"{what} {str(kind).removeprefix('torch.')}"] = asdict(ratio)
    return found


def forward(network: nn.Module, x: Tensor, time: Tensor, kind: torch.dtype) -> Callable[[], None]:
    """Return a forward pass; in bfloat16 by autocast."""

    def action() -> None:
        with torch.inference_mode(), torch.autocast("cpu", kind, enabled=kind != torch.float32):
            network(x, time)

    return action


def step(network: nn.Module, x: Tensor, time: Tensor, kind: torch.dtype) -> Callable[[], None]:
    """Return a training step of all parameters; in bfloat16 by autocast."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def action() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            output = network(x, time)
        output.float().square().mean().backward()
        optimizer.step()

    return action
