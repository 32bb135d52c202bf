"""The layers of U-ViT (Bao et al. 2023, arXiv 2209.12152), from timm's blocks; parameter names are the public ones."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cdm_lightning.errors import BadInput


class PlainBlock(Block):
    """A transformer block of pre-normalization, without a bias of queries, keys and values."""

    def __init__(self, width: int, heads: int, norm_epsilon: float) -> None:
        norm_layer = partial(nn.LayerNorm, eps=norm_epsilon)
        super().__init__(width, heads, qkv_bias=False, norm_layer=norm_layer)  # type: ignore[arg-type]

    def beside(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """Return the block's output for `tokens` [batch, token, width], which also attend to a `prompt`.

        It is what the block makes of both of them, but for the prompt's own outputs, which nobody would look at: a
        prompt has keys and values alone. It is [batch, token, width], or [1, token, width] if all rows have the same.
        """
        attention, width = self.attn, tokens.shape[2]
        assert isinstance(attention, Attention)
        query, seen = attention.qkv(self.norm1(tokens)).split([width, 2 * width], dim=2)
        beside = attention.qkv(self.norm1(prompt))[..., width:].expand(len(tokens), -1, -1)
        both = torch.cat([seen, beside], dim=1)
        key, value = both.unflatten(2, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = query.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + attention.proj(mixed)
        changed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return changed


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


def check_width(width: int) -> None:
    """Raise BadInput if a backbone's `width` is none of a sinusoidal embedding: it has as many cosines as sines."""
    if width < 2 or width % 2:
        raise BadInput(f"model.backbone.init_args.width is {width}; expected an even number, at least 2")


def by_layer(prompt: Tensor | None, layers: int) -> Sequence[Tensor | None]:
    """Return what each of `layers` layers takes of a prompt [batch, layer, token, width]; None is nothing.

    A prompt of fewer layers is that of the last. If it was expanded over the batch, as in training, it is its one row.
    """
    if prompt is None:
        return [None] * layers
    own = (prompt[:1] if prompt.stride(0) == 0 else prompt).unbind(1)
    return [None] * (layers - len(own)) + list(own)


def with_prompt(block: nn.Module, tokens: Tensor, prompt: Tensor | None) -> Tensor:
    """Run a block over the tokens, beside its layer's prompt tokens if there are any."""
    assert isinstance(block, PlainBlock)
    return block(tokens) if prompt is None else block.beside(tokens, prompt)


def unpatchify(patches: Tensor, channels: int, size: int) -> Tensor:
    """Lay patches [batch, patch, size * size * channel] out as images [batch, channel, height, width]."""
    batch, count, _ = patches.shape
    side = math.isqrt(count)
    grid = patches.reshape(batch, side, side, size, size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * size, side * size)
