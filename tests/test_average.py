"""Averaged prompts. Oracles: additions computed by hand, the average of equal ones, means."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cdm_lightning.prompts import KINDS, Full, Head, LoRA, Prompt, Tokens, averaged, unlike
from cdm_lightning.prompts.lora import linear_layers
from tests.test_prompts import inputs, network, prompt, stirred

SHARES = [0.3, 0.7]


def output(own: Prompt) -> Tensor:
    """Return F of four images with a prompt."""
    (x, time, guide), rows = inputs(4), torch.zeros(4, dtype=torch.long)
    found: Tensor = type(own).network(network(), [own], rows, rows)(x, time, guide=guide)
    return found


def made(kind: str, seed: int) -> Prompt:
    own = stirred(prompt(kind), seed)
    assert isinstance(own, Prompt)
    return own


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_labels_are_averaged(kind: str) -> None:
    one, two = stirred(prompt(kind, 2), 1), stirred(prompt(kind, 2), 2)
    soup = averaged(network(), [one, two], SHARES)  # type: ignore[list-item]
    expected = SHARES[0] * one.labels + SHARES[1] * two.labels  # type: ignore[operator]
    torch.testing.assert_close(soup.labels, expected)


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_the_average_of_equal_prompts_is_that_prompt(kind: str) -> None:
    own = made(kind, 7)
    soup = averaged(network(), [own, own, own], [0.2, 0.5, 0.3])
    torch.testing.assert_close(output(soup), output(own), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in soup.parameters())


@torch.no_grad()
def test_a_layer_gets_the_weighted_sum_of_the_additions() -> None:
    backbone, (one, two) = network(), (made("lora", 1), stirred(LoRA(network(), 5, 0, torch.Generator()), 2))
    assert isinstance(one, LoRA)
    assert isinstance(two, LoRA)
    soup = averaged(backbone, [one, two], SHARES)
    for name, layer in linear_layers(backbone).items():
        x = torch.randn(6, layer.in_features, generator=torch.Generator().manual_seed(3))
        addition = sum(s * x @ own.down[name].T @ own.up[name].T for s, own in zip(SHARES, (one, two), strict=True))
        expected = layer(x) + addition
        assert isinstance(soup, LoRA)
        assert len(soup.down[name]) == 3 + 5
        torch.testing.assert_close(layer(x) + x @ soup.down[name].T @ soup.up[name].T, expected)
        layer.weight.data += sum(s * own.up[name] @ own.down[name] for s, own in zip(SHARES, (one, two), strict=True))
    x, time, guide = inputs(4)
    torch.testing.assert_close(output(soup), backbone(x, time, guide=guide), rtol=1e-4, atol=1e-5)
    assert (output(soup) - output(one)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["full", "head", "tokens"])
def test_parameters_are_the_means(kind: str) -> None:
    one, two = made(kind, 1), made(kind, 2)
    soup = averaged(network(), [one, two], SHARES).state_dict()
    for name, tensor in soup.items():
        expected = SHARES[0] * one.state_dict()[name] + SHARES[1] * two.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(one, Full | Head | Tokens)


def of(one: Prompt | None, other: Prompt | None, classes: Sequence[str] = (), others: Sequence[str] = ()) -> str | None:
    """Return what keeps the prompts of two sources from being averaged."""
    return unlike({"a": one, "b": other}, {"a": classes, "b": others})


def test_what_cannot_be_averaged_is_told() -> None:
    lora, larger = made("lora", 1), LoRA(network(), 5, 0, torch.Generator())
    assert of(lora, larger) is None
    assert of(lora, lora, ("dog", "cat"), ("cat", "dog")) is None
    assert of(lora, None) == "source 'b' has no prompt"
    assert of(None, lora) == "source 'a' has no prompt"
    assert of(lora, made("tokens", 1)) == "the prompts are of kinds that cannot be averaged: lora and tokens"
    one_by_one = "classes are averaged one by one, but source 'a' has cat, dog and source 'b' has dog"
    assert of(lora, lora, ("dog", "cat"), ("dog",)) == one_by_one
    other_sizes = "the prompts of the sources 'a' and 'b' are of different sizes"
    assert of(made("tokens", 1), Tokens(network(), 3, 0, torch.Generator())) == other_sizes


def test_as_many_classes_of_other_names_are_not_averaged() -> None:
    lora = made("lora", 1)
    assert of(lora, lora, ("cat", "dog"), ("cat", "cow")) == (
        "classes are averaged one by one, but source 'a' has cat, dog and source 'b' has cat, cow"
    )
