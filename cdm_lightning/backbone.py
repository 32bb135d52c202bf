"""The shared network F: U-ViT (Bao et al. 2023, arXiv 2209.12152), one prompt per sample."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import GuideHead
from cdm_lightning.public_weights import Variant, check_weights, read_state_dict
from cdm_lightning.uvit_layers import (
    PlainBlock,
    SkipBlock,
    by_layer,
    sinusoidal_embedding,
    time_layers,
    unpatchify,
    with_prompt,
)


class Backbone(nn.Module, ABC):
    """What every backbone offers; a class of your own goes into a config as `model.backbone.class_path`.

    Its constructor takes `image_size`, `channels` and `guided` beside arguments of its own.

    Attributes:
        prompt_shape: (layer, width) that deep prompt tokens must have.
        init_args: the arguments of the constructor that a store keeps to build the network again; no path among them.
        learning_rate: what suits it unless a configuration says otherwise.
        weights: the file that `initialize` takes parameters from, if there is one; a store keeps its sha256.
    """

    learning_rate: ClassVar[float] = 1e-3
    prompt_shape: tuple[int, int]
    init_args: dict[str, Any]
    weights: str | None = None

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Draw every parameter afresh from `generator`, then take those that `weights` holds."""

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
        depth: number of blocks, odd; the public configurations count one less.
        heads: attention heads.
        time_mlp: whether two linear layers follow the sinusoidal embedding of the time; by default as in `weights`, or
            true.
        classes: rows of the label embedding, 0 for none; by default as in `weights`, or 0.
        final_convolution: whether a 3x3 convolution comes last; by default as in `weights`, or true.
        norm_epsilon: what the blocks' LayerNorms add to the variance; by default 1e-5 with `weights`, or 1e-6.
        prompted: how many blocks, the last ones, see prompt tokens; by default all. The fewer, the less of the network
            a training step of tokens goes back through.
        weights: a file with the state dict of a public U-ViT, from torch.save or .safetensors, to start from.

    Raises:
        BadInput: sizes that do not fit together, or weights that are not of such a network.
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
        time_mlp: bool | None = None,
        classes: int | None = None,
        final_convolution: bool | None = None,
        norm_epsilon: float | None = None,
        prompted: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(image_size, patch_size, width, depth, heads, prompted)
        tensors = None if weights is None else read_state_dict(weights)
        given = {"time_mlp": time_mlp, "classes": classes, "final_convolution": final_convolution}
        found = Variant() if tensors is None else Variant.of(tensors)
        variant = found.replaced({**given, "norm_epsilon": norm_epsilon})
        sizes = {"image_size": image_size, "channels": channels, "guided": guided, "patch_size": patch_size}
        sizes |= {"width": width, "depth": depth, "heads": heads}
        self.init_args = sizes | variant.differences() | ({} if prompted is None else {"prompted": prompted})
        self.weights, self.channels, self.patch_size, self.width, self.depth = (
            weights,
            channels,
            patch_size,
            width,
            depth,
        )
        self.prompt_shape = (depth if prompted is None else prompted, width)
        self._make_layers(image_size, guided, heads, variant)
        if weights is not None and tensors is not None:
            check_weights(weights, tensors, self.init_args, self._public_part())

    def _make_layers(self, image_size: int, guided: bool, heads: int, variant: Variant) -> None:
        channels, patch_size, width = self.channels, self.patch_size, self.width
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, width)
        self.guide_embed = PatchEmbed(image_size, patch_size, 2 * channels, width, bias=False) if guided else None
        self.guide_head = GuideHead(channels, width) if guided else None
        self.time_embed = time_layers(width) if variant.time_mlp else nn.Identity()
        self.label_emb = nn.Embedding(variant.classes, width) if variant.classes else None
        self.extras = 2 if variant.classes else 1
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + self.patch_embed.num_patches, width))
        half, epsilon = range(self.depth // 2), variant.norm_epsilon
        self.in_blocks = nn.ModuleList(PlainBlock(width, heads, epsilon) for _ in half)
        self.mid_block = PlainBlock(width, heads, epsilon)
        self.out_blocks = nn.ModuleList(SkipBlock(width, heads, epsilon) for _ in half)
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch_size**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1) if variant.final_convolution else nn.Identity()

    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights from a normal law cut at two standard deviations of 0.02; biases and the last layer are 0.

        With `weights`, all but the guide's part is theirs; then the guide has no influence at first.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        last = self.final_layer if isinstance(self.final_layer, nn.Conv2d) else self.decoder_pred
        nn.init.zeros_(last.weight)
        if self.guide_head is not None:
            self.guide_head.initialize(generator)
        if self.weights is not None:
            self._load_weights(self.weights)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        guide: Tensor | None = None,
        prompt: Tensor | None = None,
        label: Tensor | None = None,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return F [batch, channel, height, width]; see `Backbone.forward`.

        `head` takes the place of a guided network's own (`GuideHead.forward`).
        `label` [batch] is a row of the label embedding, where there is one; by default its last row, which stands for
        "no class" in weights that were trained for classifier-free guidance.
        """
        embedding = sinusoidal_embedding(time, self.width)
        prompts = by_layer(prompt, self.depth)
        tokens, skips = self._first_half(x, embedding, guide, prompts, label)
        for block, own in zip(self.out_blocks, prompts[len(skips) + 1 :], strict=True):
            assert isinstance(block, SkipBlock)
            tokens = with_prompt(block, block.skip_linear(torch.cat([tokens, skips.pop()], dim=-1)), own)
        patches = self.decoder_pred(self.norm(tokens[:, self.extras :]))
        output: Tensor = self.final_layer(unpatchify(patches, self.channels, self.patch_size))
        head = self.guide_head if head is None else head
        if head is not None and guide is not None:
            output = output + head(torch.cat([x, guide], dim=1), embedding)
        return output

    def features(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
        """Return what the middle block knows of an image, [batch, 5 width]: see `Featured.features`.

        The mean of the tokens of each quarter of the image, then their deviation over all of it.
        """
        embedding, prompts = sinusoidal_embedding(time, self.width), by_layer(None, self.depth)
        tokens = self._first_half(x, embedding, guide, prompts, None)[0][:, self.extras :]
        side = math.isqrt(tokens.shape[1])
        quarters = adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, (side, side)), 2).flatten(1)
        return torch.cat([quarters, tokens.std(1, correction=0)], dim=1)

    def _first_half(
        self,
        x: Tensor,
        embedding: Tensor,
        guide: Tensor | None,
        prompts: Sequence[Tensor | None],
        label: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens after the middle block, and what the second half's blocks join, the first block's first."""
        tokens: Tensor = self.patch_embed(x)
        if self.guide_embed is not None:
            tokens = tokens + self.guide_embed(guide)
        tokens = torch.cat([self._extra_tokens(embedding, label), tokens], 1) + self.pos_embed
        skips = []
        for block, prompt in zip(self.in_blocks, prompts, strict=False):
            tokens = with_prompt(block, tokens, prompt)
            skips.append(tokens)
        return with_prompt(self.mid_block, tokens, prompts[len(skips)]), skips

    def _extra_tokens(self, embedding: Tensor, label: Tensor | None) -> Tensor:
        """Return the tokens that stand before those of the patches, [batch, extra, width]: label, time."""
        time_token: Tensor = self.time_embed(embedding)[:, None]
        if self.label_emb is None:
            return time_token
        if label is None:
            label = torch.full((len(embedding),), self.label_emb.num_embeddings - 1, device=embedding.device)
        return torch.cat([self.label_emb(label)[:, None], time_token], dim=1)

    def _load_weights(self, path: str) -> None:
        """Take all but the guide's part from a file, and start the guide's part at 0."""
        tensors = read_state_dict(path)
        check_weights(path, tensors, self.init_args, self._public_part())
        self.load_state_dict(tensors, strict=False)
        if self.guide_embed is not None:
            nn.init.zeros_(self.guide_embed.proj.weight)

    def _public_part(self) -> dict[str, Tensor]:
        """Return the parameters that the public U-ViT has too."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("guide_")}


def freeze(backbone: nn.Module) -> None:
    """Switch the backbone to evaluation for good: no gradients, and `train()` cannot undo it.

    Raises:
        BadInput: it holds a BatchNorm, whose statistics would carry one source's data to the others.
    """
    check_norms(backbone)
    backbone.eval()
    backbone.requires_grad_(False)
    backbone.train = lambda mode=True: backbone  # type: ignore[method-assign]


def check_norms(backbone: nn.Module) -> None:
    """Raise BadInput if a network holds a BatchNorm."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise BadInput(
                f"the backbone's layer '{name}' is a BatchNorm, whose statistics mix the images of a batch and are "
                "shared by all sources; use LayerNorm or GroupNorm instead"
            )


def tensors_sha256(module: nn.Module) -> str:
    """Return the sha256 of every parameter and buffer: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_sizes(image_size: int, patch_size: int, width: int, depth: int, heads: int, prompted: int | None) -> None:
    """Raise BadInput that names the key of the first size that does not fit."""
    where = "model.backbone.init_args"
    if image_size % patch_size:
        raise BadInput(f"{where}.patch_size is {patch_size}; expected a divisor of the image size {image_size}")
    if width % (2 * heads):
        raise BadInput(f"{where}.width is {width}; expected a multiple of 2 * heads = {2 * heads}")
    if depth % 2 == 0 or depth < 1:
        raise BadInput(f"{where}.depth is {depth}; expected an odd number of blocks")
    if prompted is not None and not 1 <= prompted <= depth:
        raise BadInput(f"{where}.prompted is {prompted}; expected 1 to {depth}, as there are {depth} blocks")
