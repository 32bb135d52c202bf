"""The public U-ViT, written anew: a state dict of random weights, and its forward pass over plain tensors in float64.

After the description of the public implementation: tokens are label, time, patches; blocks are pre-norm with PyTorch's
LayerNorm; the second half joins the first half's outputs, last first; patches hold their channels last.
"""

import itertools
import math

import torch
from torch import Tensor

HEADS = 2


def block_shapes(prefix: str, width: int, skip: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one block's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    if skip:
        shapes |= {"skip_linear.weight": (width, 2 * width), "skip_linear.bias": (width,)}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def public_state_dict(
    *,
    width: int = 16,
    depth: int = 3,
    channels: int = 1,
    patch_size: int = 4,
    image_size: int = 8,
    time_mlp: bool = False,
    classes: int = 0,
    conv: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return random weights by their public names; tokens are small, so that the LayerNorms' epsilon matters."""
    patches = (image_size // patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, channels, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, (2 if classes else 1) + patches, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder_pred.weight": (patch_size**2 * channels, width),
        "decoder_pred.bias": (patch_size**2 * channels,),
    }
    if time_mlp:
        shapes |= {"time_embed.0.weight": (4 * width, width), "time_embed.0.bias": (4 * width,)}
        shapes |= {"time_embed.2.weight": (width, 4 * width), "time_embed.2.bias": (width,)}
    if classes:
        shapes["label_emb.weight"] = (classes, width)
    if conv:
        shapes |= {"final_layer.weight": (channels, channels, 3, 3), "final_layer.bias": (channels,)}
    for k in range(depth // 2):
        shapes |= block_shapes(f"in_blocks.{k}", width, False) | block_shapes(f"out_blocks.{k}", width, True)
    shapes |= block_shapes("mid_block", width, False)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        fan_in = math.prod(tensor.shape[1:])
        tensor.mul_(0.005 if name.startswith(("patch_embed", "pos_embed")) else 0.7 / math.sqrt(fan_in))
        if ".norm" in name and name.endswith("weight"):
            tensor.add_(1)
    return tensors


def public_forward(
    tensors: dict[str, Tensor],
    x: Tensor,
    time: Tensor,
    label: Tensor | None = None,
    prompt: Tensor | None = None,
    heads: int = HEADS,
) -> Tensor:
    """Return F [batch, channel, height, width] in float64; `prompt` [batch, layer, token, width] is ours."""
    p = {name: tensor.double() for name, tensor in tensors.items()}
    x = x.double()
    size, width = p["patch_embed.proj.weight"].shape[-1], p["norm.weight"].shape[0]
    tokens = [time_token(p, time.double(), width)]
    if label is not None:
        tokens.insert(0, p["label_emb.weight"][label])
    kernel, bias = p["patch_embed.proj.weight"], p["patch_embed.proj.bias"]
    places = list(itertools.product(range(0, x.shape[2], size), range(0, x.shape[3], size)))
    patches = [x[:, :, row : row + size, column : column + size] for row, column in places]
    tokens += [torch.einsum("bcij,wcij->bw", patch, kernel) + bias for patch in patches]
    h = torch.stack(tokens, 1) + p["pos_embed"]
    layers = itertools.count()

    def block(name: str, h: Tensor) -> Tensor:
        layer, count = next(layers), h.shape[1]
        if prompt is not None:
            h = torch.cat([h, prompt[:, layer].double()], 1)
        return transformer_block(p, name, h, heads)[:, :count]

    half = len({name.split(".")[1] for name in p if name.startswith("in_blocks.")})
    kept = []
    for k in range(half):
        h = block(f"in_blocks.{k}", h)
        kept.append(h)
    h = block("mid_block", h)
    for k in range(half):
        joined = torch.cat([h, kept[half - 1 - k]], -1)
        h = joined @ p[f"out_blocks.{k}.skip_linear.weight"].T + p[f"out_blocks.{k}.skip_linear.bias"]
        h = block(f"out_blocks.{k}", h)
    h = layer_norm(h, p["norm.weight"], p["norm.bias"]) @ p["decoder_pred.weight"].T + p["decoder_pred.bias"]
    image = torch.zeros_like(x)
    for k, (row, column) in enumerate(places):
        patch = h[:, len(tokens) - len(places) + k].reshape(len(x), size, size, x.shape[1])
        image[:, :, row : row + size, column : column + size] = patch.permute(0, 3, 1, 2)
    if "final_layer.weight" in p:
        image = torch.nn.functional.conv2d(image, p["final_layer.weight"], p["final_layer.bias"], padding=1)
    return image


def time_token(p: dict[str, Tensor], time: Tensor, width: int) -> Tensor:
    """Return the token of the time: cosines, then sines, and two linear layers if there are any."""
    frequencies = [10000 ** (-k / (width // 2)) for k in range(width // 2)]
    token = torch.stack([(time * f).cos() for f in frequencies] + [(time * f).sin() for f in frequencies], 1)
    if "time_embed.0.weight" not in p:
        return token
    hidden = token @ p["time_embed.0.weight"].T + p["time_embed.0.bias"]
    hidden = hidden / (1 + torch.exp(-hidden))
    return hidden @ p["time_embed.2.weight"].T + p["time_embed.2.bias"]


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def transformer_block(p: dict[str, Tensor], name: str, h: Tensor, heads: int) -> Tensor:
    """Return h + attention, + MLP."""
    batch, count, width = h.shape
    normed = layer_norm(h, p[f"{name}.norm1.weight"], p[f"{name}.norm1.bias"])
    q, k, v = (normed @ p[f"{name}.attn.qkv.weight"].T).split(width, -1)
    mixed = []
    for head in range(heads):
        own = slice(head * width // heads, (head + 1) * width // heads)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width // heads)
        mixed.append(torch.softmax(scores, -1) @ v[..., own])
    h = h + torch.cat(mixed, -1) @ p[f"{name}.attn.proj.weight"].T + p[f"{name}.attn.proj.bias"]
    normed = layer_norm(h, p[f"{name}.norm2.weight"], p[f"{name}.norm2.bias"])
    hidden = normed @ p[f"{name}.mlp.fc1.weight"].T + p[f"{name}.mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return h + hidden @ p[f"{name}.mlp.fc2.weight"].T + p[f"{name}.mlp.fc2.bias"]
