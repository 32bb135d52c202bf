"""The average of the prompts as the network of all sources. Oracle: compositions by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdm_lightning.cli import main
from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import denoise, guided_denoise
from cdm_lightning.packing import open_compartments
from cdm_lightning.prompts import LoRA
from cdm_lightning.soup import Soup
from cdm_lightning.store import Store
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor
from tests.test_prompts import stirred
from tests.test_validate import copied


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


def opened(store: Path) -> Compartments:
    parts = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    for k, own in enumerate(parts.compartments.values()):
        assert isinstance(own.prompt, nn.Module)
        stirred(own.prompt, k)
    return parts


@torch.no_grad()
@pytest.mark.parametrize("row", [False, True])
def test_a_guided_backbone_finishes_the_draft_of_the_union_with_the_average(row: bool, lora: Path) -> None:
    soup = Soup.of(opened(lora)) if row else opened(lora)
    x, sigma = levels(soup.sigma_switch / 3)
    composed = soup.composed("draft")
    draft, own = soup.union.denoise(x, sigma), soup.compartments.values()  # of one Gaussian each: nothing is merged
    weights = torch.stack([math.log(part.n) + part.closed_form.log_density(x, sigma) for part in own]).softmax(0)
    errors = torch.stack([soup.public.error.at(sigma, torch.full((3,), float(part.n))) for part in own])
    error = (weights * errors.square()).sum(0).sqrt()
    rows = torch.zeros(3, dtype=torch.long)
    averaged_network = LoRA.network(soup.backbone, [soup.average], rows, rows)  # type: ignore[list-item]
    expected = guided_denoise(soup.preconditioning, averaged_network, x, sigma, draft, error)
    torch.testing.assert_close(composed(x, sigma), expected)
    assert soup.evaluations == 3
    alone = soup["digit0"](x, sigma)
    assert (composed(x, sigma) - alone).abs().max() > 1e-3


@torch.no_grad()
def test_a_plain_backbone_has_no_draft(lora: Path) -> None:
    soup = Soup.of(opened(lora))
    x, sigma = levels(soup.sigma_switch / 3)
    assert soup.average is not None
    soup.guided, soup.backbone.guide_embed, soup.backbone.guide_head = False, None, None  # type: ignore[assignment]
    rows = torch.zeros(3, dtype=torch.long)
    averaged_network = LoRA.network(soup.backbone, [soup.average], rows, rows)  # type: ignore[list-item]
    expected = denoise(soup.preconditioning, averaged_network, x, sigma)
    assert torch.equal(soup.composed("draft")(x, sigma), expected)
    assert soup.evaluations == 3


@torch.no_grad()
def test_above_the_switch_it_is_the_closed_form_of_the_union(lora: Path) -> None:
    soup = Soup.of(opened(lora))
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
    assert (
        "the row 'soup' averages prompts, but source 'digit0' has no prompt: leave out the row"
        in capsys.readouterr().err
    )
