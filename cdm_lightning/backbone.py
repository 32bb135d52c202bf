"""The shared network F: U-ViT (Bao et al. 2023, arXiv 2209.12152), from timm's blocks, one prompt per sample."""

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import GuideHead


class Backbone(nn.Module, ABC):
    """What every backbone offers; a class of your own goes into a config as `model.backbone.class_path`.

    Its constructor takes `image_size`, `channels` and `guided` beside arguments of its own.

    Attributes:
        prompt_shape: (layer, width) that deep prompt tokens must have.
        init_args: all arguments of the constructor; a store keeps them to build the network again.
    """

    prompt_shape: tuple[int, int]
    init_args: dict[str, Any]

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Draw every parameter afresh from `generator`."""

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F, shaped as x.

        Args:
            x: [batch, channel, height, width], scaled to unit variance.
            time: [batch], noise level on the scale 0..1000.
            guide: [batch, 2 channel, height, width], a draft and its residual, if the backbone is guided.
            prompt: [batch, layer, token, width], the tokens of each sample's source.
        """


class UViT(Backbone):
    """A transformer over patches with long skip connections; parameter names are those of the public checkpoints.

    Args:
        image_size: height and width of an image.
        channels: 1 or 3.
        guided: whether it sees a draft beside x; adds `guide_embed` and `guide_head`, nothing else.
        patch_size: side of a patch, a divisor of `image_size`.
        width: features per token, a multiple of `heads`.
        depth: number of blocks, odd.
        heads: attention heads.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        guided: bool = True,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 5,
        heads: int = 4,
    ) -> None:
        super().__init__()
        _check_sizes(image_size, patch_size, width, depth, heads)
        self.init_args = {
            "image_size": image_size,
            "channels": channels,
            "guided": guided,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
        }
        self.channels, self.width, self.patch_size = channels, width, patch_size
        self.prompt_shape = (depth, width)
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, width)
        self.guide_embed = PatchEmbed(image_size, patch_size, 2 * channels, width, bias=False) if guided else None
        self.guide_head = GuideHead(channels, width) if guided else None
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, width))
        self.in_blocks = nn.ModuleList(Block(width, heads, qkv_bias=False) for _ in range(depth // 2))
        self.mid_block = Block(width, heads, qkv_bias=False)
        self.out_blocks = nn.ModuleList(SkipBlock(width, heads, qkv_bias=False) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch_size**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights from a normal law cut at two standard deviations of 0.02; biases and the last layer are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.zeros_(self.final_layer.weight)
        if self.guide_head is not None:
            self.guide_head.initialize(generator)

    def forward(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """Return F [batch, channel, height, width]; see `Backbone.forward`."""
        tokens: Tensor = self.patch_embed(x)
        if self.guide_embed is not None:
            tokens = tokens + self.guide_embed(guide)
        embedding = sinusoidal_embedding(time, self.width)
        tokens = torch.cat([self.time_embed(embedding)[:, None], tokens], 1) + self.pos_embed
        skips = []
        for layer, block in enumerate(self.in_blocks):
            tokens = _with_prompt(block, tokens, prompt, layer)
            skips.append(tokens)
        tokens = _with_prompt(self.mid_block, tokens, prompt, len(skips))
        for layer, block in enumerate(self.out_blocks, start=len(skips) + 1):
            assert isinstance(block, SkipBlock)
            tokens = block.skip_linear(torch.cat([tokens, skips.pop()], dim=-1))
            tokens = _with_prompt(block, tokens, prompt, layer)
        patches = self.decoder_pred(self.norm(tokens[:, 1:]))
        output: Tensor = self.final_layer(_unpatchify(patches, self.channels, self.patch_size))
        if self.guide_head is not None and guide is not None:
            output = output + self.guide_head(torch.cat([x, guide], dim=1), embedding)
        return output


class SkipBlock(Block):
    """A block of the second half, which first joins the output of its partner in the first half."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__(width, heads, qkv_bias=qkv_bias)
        self.skip_linear = nn.Linear(2 * width, width)


def sinusoidal_embedding(time: Tensor, width: int, longest_period: float = 10000.0) -> Tensor:
    """Return cosines, then sines, of `time` [batch] at width / 2 frequencies: [batch, width]."""
    half = width // 2
    frequency = torch.exp(-math.log(longest_period) * torch.arange(half, device=time.device) / half)
    angle = time[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def freeze(backbone: nn.Module) -> None:
    """Switch the backbone to evaluation for good: no gradients, and `train()` cannot undo it.

    Raises:
        BadInput: it holds a BatchNorm, whose statistics would carry one source's data to the others.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise BadInput(
                f"the backbone's layer '{name}' is a BatchNorm, whose statistics mix the images of a batch and are "
                "shared by all sources; use LayerNorm or GroupNorm instead"
            )
    backbone.eval()
    backbone.requires_grad_(False)
    backbone.train = lambda mode=True: backbone  # type: ignore[method-assign]


def tensors_sha256(module: nn.Module) -> str:
    """Return the sha256 of every parameter and buffer: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _with_prompt(block: nn.Module, tokens: Tensor, prompt: Tensor | None, layer: int) -> Tensor:
    """Run a block over the tokens and this layer's prompt tokens, which are dropped afterwards."""
    if prompt is None:
        return block(tokens)  # type: ignore[no-any-return]
    return block(torch.cat([tokens, prompt[:, layer]], dim=1))[:, : tokens.shape[1]]  # type: ignore[no-any-return]


def _unpatchify(patches: Tensor, channels: int, size: int) -> Tensor:
    """Lay patches [batch, patch, size * size * channel] out as images [batch, channel, height, width]."""
    batch, count, _ = patches.shape
    side = math.isqrt(count)
    grid = patches.reshape(batch, side, side, size, size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * size, side * size)


def _check_sizes(image_size: int, patch_size: int, width: int, depth: int, heads: int) -> None:
    """Raise BadInput that names the key of the first size that does not fit."""
    where = "model.backbone.init_args"
    if image_size % patch_size:
        raise BadInput(f"{where}.patch_size is {patch_size}; expected a divisor of the image size {image_size}")
    if width % (2 * heads):
        raise BadInput(f"{where}.width is {width}; expected a multiple of 2 * heads = {2 * heads}")
    if depth % 2 == 0 or depth < 1:
        raise BadInput(f"{where}.depth is {depth}; expected an odd number of blocks")
