"""Averaged prompts. Oracles: additions computed by hand, the average of equal ones, means, compositions by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdm_lightning.cli import main
from cdm_lightning.compartment import ClassForm, Compartment
from cdm_lightning.denoiser import denoise, guided_denoise
from cdm_lightning.errors import BadInput
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.packing import open_compartments
from cdm_lightning.prompts import KINDS, Full, LoRA, Prompt, Tokens
from cdm_lightning.prompts.lora import linear_layers
from cdm_lightning.soup import Soup, averaged, checked
from cdm_lightning.store import Store
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor
from tests.test_prompts import inputs, network, prompt, stirred
from tests.test_validate import copied

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


def part(own: Prompt | None, *labels: str) -> Compartment:
    """Return a compartment with a prompt and classes."""
    form = Gaussians.fit(torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1)), seed=0, rank=3)
    return Compartment(9, form, form, own, {label: ClassForm(3, form, form) for label in labels})


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


@pytest.mark.parametrize("kind", ["full", "tokens"])
def test_parameters_are_the_means(kind: str) -> None:
    one, two = made(kind, 1), made(kind, 2)
    soup = averaged(network(), [one, two], SHARES).state_dict()
    for name, tensor in soup.items():
        expected = SHARES[0] * one.state_dict()[name] + SHARES[1] * two.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(one, Full | Tokens)


def test_what_cannot_be_averaged_is_told() -> None:
    with pytest.raises(BadInput, match="source 'b' has none"):
        checked({"a": part(made("lora", 1)), "b": part(None)})
    with pytest.raises(BadInput, match="of one kind, but there are lora and tokens"):
        checked({"a": part(made("lora", 1)), "b": part(made("tokens", 1))})
    with pytest.raises(BadInput, match="source 'a' has cat, dog and source 'b' has dog: leave out"):
        checked({"a": part(made("lora", 1), "dog", "cat"), "b": part(made("lora", 1), "dog")})
    with pytest.raises(BadInput, match="different numbers of tokens"):
        averaged(network(), [made("tokens", 1), Tokens(network(), 3, 0, torch.Generator())], SHARES)


# --- as a row


@pytest.fixture(scope="module")
def lora(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a guided store of two LoRAs; read it, do not change it."""
    own = copied(store, tmp_path_factory.mktemp("soup") / "store", [])
    options = ("--model.compartment", "lora", "--trainer.max_steps", "3")
    assert fit(own, "[digit0, digit1]", *options) == 0
    return own


def levels(sigma: float, n: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.full((n,), sigma)


def soup_of(store: Path, guided: bool = True) -> Soup:
    parts = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    parts.guided = guided
    for k, own in enumerate(parts.compartments.values()):
        assert isinstance(own.prompt, nn.Module)
        stirred(own.prompt, k)
    return Soup.of(parts)


@torch.no_grad()
def test_a_guided_backbone_finishes_the_draft_of_the_union_with_the_average(lora: Path) -> None:
    soup = soup_of(lora)
    x, sigma = levels(soup.sigma_switch / 3)
    composed = soup.composed("draft")
    draft, own = soup.union.denoise(x, sigma), soup.compartments.values()  # of one Gaussian each: nothing is merged
    weights = torch.stack([math.log(part.n) + part.closed_form.log_density(x, sigma) for part in own]).softmax(0)
    errors = torch.stack([soup.public.error.at(sigma, torch.full((3,), float(part.n))) for part in own])
    error = (weights * errors.square()).sum(0).sqrt()
    rows = torch.zeros(3, dtype=torch.long)
    averaged_network = LoRA.network(soup.backbone, [soup.prompt], rows, rows)  # type: ignore[list-item]
    expected = guided_denoise(soup.preconditioning, averaged_network, x, sigma, draft, error)
    torch.testing.assert_close(composed(x, sigma), expected)
    assert soup.evaluations == 3
    alone = soup["digit0"](x, sigma)
    assert (composed(x, sigma) - alone).abs().max() > 1e-3


@torch.no_grad()
def test_a_plain_backbone_has_no_draft(lora: Path) -> None:
    soup = soup_of(lora)
    x, sigma = levels(soup.sigma_switch / 3)
    soup.guided, soup.backbone.guide_embed, soup.backbone.guide_head = False, None, None  # type: ignore[assignment]
    rows = torch.zeros(3, dtype=torch.long)
    averaged_network = LoRA.network(soup.backbone, [soup.prompt], rows, rows)  # type: ignore[list-item]
    expected = denoise(soup.preconditioning, averaged_network, x, sigma)
    assert torch.equal(soup.composed("draft")(x, sigma), expected)
    assert soup.evaluations == 3


@torch.no_grad()
def test_above_the_switch_it_is_the_closed_form_of_the_union(lora: Path) -> None:
    soup = soup_of(lora)
    x, sigma = levels(2 * soup.sigma_switch)
    torch.testing.assert_close(soup.composed("draft")(x, sigma), soup.union.denoise(x, sigma))
    assert soup.evaluations == 0


def test_the_row_takes_one_evaluation_at_each_level_whatever_the_number_of_sources(
    lora: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdm_lightning.evaluate_command.open_extractor", lambda *_: DummyExtractor("effnet-lite0"))
    monkeypatch.setattr("cdm_lightning.comparison.peak_memory", lambda *_: None)
    monkeypatch.setattr("cdm_lightning.cost.TURNS", 1)
    out = ("--sources", "[digit0, digit1]", "--out", str(tmp_path), "--n", "4", "--steps", "5")
    rows = ("--strategies", "[routed, soup]")
    assert main(["evaluate", "--store", str(lora), *out, *rows]) == 0
    assert "soup, not exact" in (tmp_path / "table.md").read_text()
    routed, soup = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert 0 < soup["network_evaluations_per_image"] == routed["network_evaluations_per_image"]
    assert main(["evaluate", "--store", str(store), *out, *rows]) == 2
    assert "the row 'soup' averages prompts, but source 'digit0' has none" in capsys.readouterr().err
