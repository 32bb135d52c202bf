"""Our U-ViT against the public code, with the same weights: a forward pass and a training step, float32 and bfloat16.

The public code is not ours and is not in this repository: clone github.com/baofff/U-ViT, and install einops for it.
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

PATCH, WIDTH, DEPTH, HEADS = 4, 128, 5, 4  # as configs/fashion_shards.yaml
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
    g = generator("speed", "uvit")
    ours = UViT(SIZE, 1, False, PATCH, WIDTH, DEPTH, HEADS, norm_epsilon=1e-5)
    ours.initialize(g)
    nn.init.normal_(ours.final_layer.weight, std=0.1, generator=g)  # type: ignore[arg-type]
    theirs = public_network(folder, ours.state_dict())
    x, time = torch.randn(BATCH, 1, SIZE, SIZE, generator=g), 1000 * torch.rand(BATCH, generator=g)
    with torch.inference_mode():
        apart = float((ours(x, time) - theirs(x, time)).abs().max())
    if not apart < EQUAL:
        raise RuntimeError(f"the public network computes something else: its outputs differ by {apart:.2g}")
    found: dict[str, Any] = {"apart": apart}
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
