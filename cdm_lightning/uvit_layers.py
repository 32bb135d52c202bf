"""The layers of U-ViT (Bao et al. 2023, arXiv 2209.12152), from timm's blocks; parameter names are the public ones."""

import math
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class PlainBlock(Block):
    """A transformer block of pre-normalization, without a bias of queries, keys and values."""

    def __init__(self, width: int, heads: int, norm_epsilon: float) -> None:
        norm_layer = partial(nn.LayerNorm, eps=norm_epsilon)
        super().__init__(width, heads, qkv_bias=False, norm_layer=norm_layer)  # type: ignore[arg-type]


class SkipBlock(PlainBlock):
    """A block of the second half, which first joins the output of its partner in the first half."""

    def __init__(self, width: int, heads: int, norm_epsilon: float) -> None:
        super().__init__(width, heads, norm_epsilon)
        self.skip_linear = nn.Linear(2 * width, width)


def time_layers(width: int) -> nn.Sequential:
    """Return the two linear layers that some U-ViTs put after the sinusoidal embedding [batch, width]."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


def sinusoidal_embedding(time: Tensor, width: int, longest_period: float = 10000.0) -> Tensor:
    """Return cosines, then sines, of `time` [batch] at width / 2 frequencies: [batch, width]."""
    half = width // 2
    frequency = torch.exp(-math.log(longest_period) * torch.arange(half, device=time.device) / half)
    angle = time[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def with_prompt(block: nn.Module, tokens: Tensor, prompt: Tensor | None, layer: int) -> Tensor:
    """Run a block over the tokens and this layer's prompt tokens, which come last and are dropped afterwards."""
    if prompt is None:
        return block(tokens)  # type: ignore[no-any-return]
    return block(torch.cat([tokens, prompt[:, layer]], dim=1))[:, : tokens.shape[1]]  # type: ignore[no-any-return]


def unpatchify(patches: Tensor, channels: int, size: int) -> Tensor:
    """Lay patches [batch, patch, size * size * channel] out as images [batch, channel, height, width]."""
    batch, count, _ = patches.shape
    side = math.isqrt(count)
    grid = patches.reshape(batch, side, side, size, size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * size, side * size)
