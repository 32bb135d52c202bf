"""The kinds of prompts. Oracles: a backbone whose weights were changed by hand, and one row at a time."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cdm_lightning.backbone import Backbone, UViT, freeze, tensors_sha256
from cdm_lightning.conv_net import ConvNet
from cdm_lightning.guide_head import AT_ONCE
from cdm_lightning.prompts import KINDS, Full, Head, LoRA, Prompt, Prompts, Tokens
from cdm_lightning.prompts.lora import linear_layers
from cdm_lightning.unet import UNet

ZERO = torch.zeros(1, dtype=torch.long)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(module: nn.Module, seed: int, size: float = 0.2) -> nn.Module:
    """Add noise to every parameter, so that all of them matter."""
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator(100 * seed + k)))
    return module


MADE: dict[str, Callable[[], Backbone]] = {
    "transformer": lambda: UViT(image_size=8, channels=1, patch_size=4, width=16, depth=3, heads=2),
    "transformer, half": lambda: UViT(image_size=8, channels=1, patch_size=4, width=16, depth=3, heads=2, prompted=2),
    "ConvNet": lambda: ConvNet(image_size=8, channels=1, features=8, dilations=(1, 2), width=16),
    "U-Net": lambda: UNet(image_size=8, channels=1, features=(8, 16), width=16),
}


def network(name: str = "transformer") -> Backbone:
    made = MADE[name]()
    made.initialize(generator(0))
    stirred(made, 0)
    freeze(made)
    return made


def prompt(kind: str, classes: int = 0, seed: int = 1, name: str = "transformer") -> Prompt:
    backbone, start = network(name), generator(seed)
    if kind == "tokens":
        return Tokens(backbone, 2, classes, start)
    if kind == "lora":
        return LoRA(backbone, 3, classes, start)
    return (Head if kind == "head" else Full)(backbone, classes, start)


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=generator(3))
    return x, torch.linspace(10, 900, n), torch.randn(n, 2, 8, 8, generator=generator(4))


def test_lora_is_the_backbone_with_low_rank_matrices_added_to_its_weights() -> None:
    backbone, (x, time, guide) = network(), inputs(4)
    lora = stirred(prompt("lora"), 7)
    assert isinstance(lora, LoRA)
    merged = copy.deepcopy(backbone)
    for name, layer in merged.named_modules():
        if isinstance(layer, nn.Linear):
            key = name.replace(".", "/")
            layer.weight.data += lora.up[key].detach() @ lora.down[key].detach()
    expected = merged(x, time, guide=guide)
    rows = torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(LoRA.network(backbone, [lora], rows, rows)(x, time, guide=guide), expected)
    assert (expected - backbone(x, time, guide=guide)).abs().max() > 0.1
    assert {name.rsplit("/")[-1] for name in linear_layers(backbone)} >= {"qkv", "proj", "fc1", "fc2", "skip_linear"}


@pytest.mark.parametrize("kind", ["lora", "head", "full"])
def test_at_its_start_a_prompt_changes_nothing(kind: str) -> None:
    backbone, (x, time, guide) = network(), inputs(2)
    start = prompt(kind)
    adapted = type(start).network(backbone, [start], ZERO.expand(2), ZERO.expand(2))
    torch.testing.assert_close(adapted(x, time, guide=guide), backbone(x, time, guide=guide), rtol=0, atol=1e-6)


def test_a_head_takes_the_place_of_the_backbones_own() -> None:
    backbone, (x, time, guide) = network(), inputs(4)
    head, whole = stirred(prompt("head"), 6), prompt("full")
    assert isinstance(head, Head)
    assert isinstance(whole, Full)
    whole.copy.guide_head.load_state_dict(head.copy.state_dict())  # type: ignore[union-attr]
    rows = torch.zeros(4, dtype=torch.long)
    found, expected = (type(own).network(backbone, [own], rows, rows) for own in (head, whole))
    torch.testing.assert_close(found(x, time, guide=guide), expected(x, time, guide=guide))
    assert (found(x, time, guide=guide) - backbone(x, time, guide=guide)).abs().max() > 0.1


def test_tokens_are_what_the_backbone_is_given() -> None:
    backbone, (x, time, guide) = network(), inputs(2)
    tokens = stirred(prompt("tokens"), 5)
    assert isinstance(tokens, Tokens)
    adapted = Tokens.network(backbone, [tokens], ZERO.expand(2), ZERO.expand(2))
    expected = backbone(x, time, guide=guide, prompt=tokens.tokens.expand(2, -1, -1, -1))
    torch.testing.assert_close(adapted(x, time, guide=guide), expected, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in MADE if kind != "head" or name == "transformer"]
)
@torch.no_grad()
def test_rows_of_many_sources_equal_one_row_at_a_time(kind: str, name: str, classes: int) -> None:
    backbone, (x, time, guide) = network(name), inputs(6)
    prompts = [stirred(prompt(kind, classes and classes + k, name=name), k, 0.1) for k in range(3)]
    row, label = torch.tensor([2, 0, 1, 2, 0, 0]), torch.tensor([0, 1, 2, 3, 3, 0]) * min(classes, 1)
    rows = KINDS[kind].network(backbone, prompts, row, label)(x, time, guide=guide)
    assert len(x) > AT_ONCE  # images of a ConvNet go in pieces
    for k in range(6):
        one = slice(k, k + 1)
        alone = KINDS[kind].network(backbone, [prompts[int(row[k])]], ZERO, label[one])
        torch.testing.assert_close(rows[one], alone(x[one], time[one], guide=guide[one]), rtol=1e-4, atol=1e-5)
    other = KINDS[kind].network(backbone, prompts, row.roll(1), label)(x, time, guide=guide)
    assert (other - rows).abs().amax((1, 2, 3))[row != row.roll(1)].min() > 1e-3


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_the_prompt_is_trained_and_labels_only_where_they_are_asked_for(kind: str) -> None:
    backbone, (x, time, guide) = network(), inputs(4)
    before = tensors_sha256(backbone)
    own = stirred(prompt(kind, 3), 2)
    assert isinstance(own, Prompt)
    label = torch.tensor([0, 2, 2, 0])
    KINDS[kind].network(backbone, [own], ZERO.expand(4), label)(x, time, guide=guide).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in own.named_parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert own.labels is not None
    assert own.labels.grad is not None
    assert own.labels.grad.abs().amax((1, 2, 3)).gt(0).tolist() == [True, False, True, False]
    assert tensors_sha256(backbone) == before


def test_lora_leaves_no_hook_behind_even_after_an_error() -> None:
    backbone, (x, time, guide) = network(), inputs(2)
    lora = stirred(prompt("lora"), 5)
    assert isinstance(lora, LoRA)
    bare = backbone(x, time, guide=guide)
    adapted = LoRA.network(backbone, [lora], ZERO.expand(2), ZERO.expand(2))
    with pytest.raises(RuntimeError):
        adapted(x, time, guide=guide[:, :1])
    adapted(x, time, guide=guide)
    assert torch.equal(backbone(x, time, guide=guide), bare)


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_state_dict_round_trip(kind: str, classes: int) -> None:
    own = stirred(prompt(kind, classes), 9)
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    again = KINDS[kind].like(network(), state)
    again.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_sizes_are_those_of_the_formulas() -> None:
    backbone = network()
    assert prompt("tokens").count == 3 * 2 * 16
    assert prompt("tokens", 4).count == 3 * 2 * 16 + (1 + 4) * 3 * 16
    shapes = [(layer.in_features, layer.out_features) for layer in linear_layers(backbone).values()]
    assert prompt("lora").count == sum(3 * (inside + outside) for inside, outside in shapes)
    assert prompt("head").count == (27 + 1) * 32 + (16 + 1) * 64 + (9 * 32 + 1) * 32 + 9 * 32 + 1
    assert prompt("full").count == sum(parameter.numel() for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_start_is_a_function_of_its_generator(kind: str) -> None:
    first, same, other = (prompt(kind, 2, seed) for seed in (1, 1, 2))
    assert tensors_sha256(first) == tensors_sha256(same) != tensors_sha256(other)


def test_names_of_module_methods_are_names_of_sources() -> None:
    prompts = Prompts()
    for name in ("train", "type", "half"):
        prompts.put(name, prompt("tokens"))
        assert prompts.find(name) is prompts["source_" + name]
    assert prompts.find("eval") is None
