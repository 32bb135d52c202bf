"""Backbone and compartments in a store and back, and what may not come back."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from cdm_lightning.backbone import tensors_sha256
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.packing import (
    build_backbone,
    check_finite,
    open_compartments,
    pack_backbone,
    pack_compartment,
    unpack_backbone,
    unpack_compartment,
)
from cdm_lightning.store import Store
from tests.conftest import Fit


def test_backbone_round_trip(store: Path) -> None:
    tensors, metadata = Store.open(store).read_backbone()
    backbone, public = unpack_backbone(tensors, metadata)
    again = pack_backbone(backbone, public)
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("kind", ["tokens", "lora", "head", "full"])
def test_compartment_round_trip(kind: str, store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    options = ("--model.compartment", kind, "--trainer.max_steps", "2", "--model.class_labels", "true")
    assert fit(copy, "[digit0]", *options) == 0
    backbone, public = unpack_backbone(*Store.open(copy).read_backbone())
    for source, prompted in (("digit0", True), ("digit1", False)):
        tensors, card = Store.open(copy).read_compartment(source)
        compartment = unpack_compartment(tensors, card, backbone, public)
        assert (compartment.prompt is not None) == prompted
        assert list(compartment.classes) == (["digit0"] if prompted else [])
        assert card.prompt_parameters == (0 if compartment.prompt is None else compartment.prompt.count)
        again = pack_compartment(compartment)
        assert set(again) == set(tensors)
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_only_the_chosen_compartments_are_opened(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Store.read_compartment
    monkeypatch.setattr(Store, "read_compartment", lambda self, source: opened.append(source) or original(self, source))
    compartments = open_compartments(Store.open(store), ["digit2", "digit0"], sigma_switch=None, device="cpu")
    assert opened == ["digit2", "digit0"] == list(compartments)
    assert compartments.prior() == {
        source: Store.open(store).read_card(source).n / sum(Store.open(store).read_card(s).n for s in opened)
        for source in opened
    }


def test_opening_leaves_the_backbone_as_it_was_stored(store: Path) -> None:
    first = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    second = open_compartments(Store.open(store), ["digit1"], sigma_switch=None, device="cpu")
    assert tensors_sha256(first.backbone) == tensors_sha256(second.backbone)


def test_a_switch_above_the_range_of_a_prompt_is_refused(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    assert fit(copy, "[digit0]", "--model.compartment", "tokens", "--trainer.max_steps", "2") == 0
    with pytest.raises(StoreError, match="sigma_switch 5 is above the noise range of source 'digit0'.* up to 3:"):
        open_compartments(Store.open(copy), ["digit0"], sigma_switch=5.0, device="cpu")
    open_compartments(Store.open(copy), ["digit1"], sigma_switch=float("inf"), device="cpu")


def test_compartments_of_another_backbone_are_refused(store: Path, fit: Fit, tmp_path: Path) -> None:
    assert fit(tmp_path / "other", "[digit3]", "--seed", "1") == 0
    shutil.copytree(store / "compartments" / "digit0", tmp_path / "other" / "compartments" / "digit0")
    with pytest.raises(StoreError, match="digit0 was fitted on another backbone"):
        open_compartments(Store.open(tmp_path / "other"), "all", sigma_switch=None, device="cpu")


@pytest.mark.parametrize(
    ("class_path", "said"),
    [
        ("os.system", "outside the allowed packages: if you trust it, set CDM_ALLOW=os"),
        ("torch.nn.Linear", "outside the allowed packages"),
        ("cdm_lightning.ema.EMA", "which is no cdm_lightning.backbone.Backbone"),
    ],
)
def test_classes_that_a_store_may_not_name(class_path: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build_backbone(class_path, {})


def test_what_is_not_finite_is_not_stored() -> None:
    with pytest.raises(StoreError, match=r"the compartment cannot be stored, since its fine\.mean is not finite"):
        check_finite({"count": torch.tensor([1]), "fine.mean": torch.tensor([0.0, math.nan])}, "the compartment")
    check_finite({"count": torch.tensor([1]), "fine.mean": torch.tensor([0.0, 1.0])}, "the compartment")
