"""`store export` and `store add`. Oracles: bytes of a fit in the central store, damage that must be named."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdm_lightning.cli import main
from cdm_lightning.collaboration import add_compartment, export_backbone
from cdm_lightning.errors import BadInput
from cdm_lightning.store import Store
from cdm_lightning.verification import faults
from datamodules.manifest import read_manifest
from tests.conftest import Fit
from tests.faults import Fault, failing_at, operations_of
from tests.test_forget import tree
from tests.test_validate import copied

TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", "3")


@pytest.fixture(scope="module")
def home(store: Path, workplace: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store of an owner who got the backbone and fitted digit1 at home, from shards of digit1 alone."""
    place = tmp_path_factory.mktemp("home")
    assert main(["store", "export", "--store", str(store), "--backbone", str(place / "store")]) == 0
    shutil.copytree(workplace / "shards" / "digit1", place / "shards" / "digit1")
    assert fit(place / "store", "all", "--data.root", str(place / "shards"), *TOKENS) == 0
    return place / "store"


@pytest.fixture
def central(store: Path, home: Path, tmp_path: Path) -> Store:
    """Return the central store, fitted by command line, so with a ledger of its own; without digit1."""
    exported = export_backbone(Store.open(store), tmp_path / "central")
    add_compartment(exported, store / "compartments" / "digit0")
    return exported


def add(store: Store, folder: Path, *options: str) -> int:
    return main(["store", "add", "--store", str(store.path), str(folder), *options])


def test_the_backbone_goes_out_and_nothing_else(store: Path, home: Path) -> None:
    assert Store.open(home).info == Store.open(store).info
    assert (home / "backbone.safetensors").read_bytes() == (store / "backbone.safetensors").read_bytes()
    assert Store.open(home).sources() == ["digit1"]
    assert faults(Store.open(home)) == []


def test_a_compartment_fitted_at_home_is_that_of_the_central_store(
    central: Store, store: Path, home: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(central, home / "compartments" / "digit1", "--json", str(tmp_path / "add.json")) == 0
    assert "digit1: added; " in capsys.readouterr().out
    assert json.loads((tmp_path / "add.json").read_text())["done"] == "added"
    whole = copied(store, tmp_path / "whole", [])
    assert fit(whole, "[digit1]", *TOKENS) == 0
    assert tree(central.path / "compartments" / "digit1") == tree(whole / "compartments" / "digit1")
    assert faults(central) == []
    before = tree(central.path)
    assert add(central, home / "compartments" / "digit1") == 0
    assert tree(central.path) == before
    assert "digit1: up to date" in capsys.readouterr().out


def test_another_one_of_the_same_source_needs_replace(
    central: Store, store: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(central, store / "compartments" / "digit1") == 0
    before = tree(central.path)
    assert add(central, home / "compartments" / "digit1") == 2
    assert "another compartment of source 'digit1': --replace" in capsys.readouterr().err
    assert tree(central.path) == before
    assert add(central, home / "compartments" / "digit1", "--replace") == 0
    assert tree(central.folder("digit1")) == tree(home / "compartments" / "digit1")
    assert faults(central) == []


def test_how_another_fitted_a_source_is_not_taken_for_how_this_one_was(
    store: Path, home: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = export_backbone(Store.open(store), tmp_path / "mine")
    assert fit(mine.path, "[digit1]") == 0
    assert add(mine, home / "compartments" / "digit1", "--replace") == 0
    before = tree(mine.path)
    key = next(iter(read_manifest(workplace / "shards" / "digit1").samples))
    options = ("--store", str(mine.path), "--root", str(workplace / "shards"))
    assert main(["forget", *options, "--sample", key]) == 2
    assert "is missing, so 'digit1' cannot be fitted again: fit it with --refit first" in capsys.readouterr().err
    assert tree(mine.path) == before


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Write a compartment anew, with hashes that agree, after a change of tensors or card."""
    lab = Store(folder.parent.parent)
    tensors, card = lab.read_compartment(folder.name)
    values: dict[str, Any] = {}
    change(tensors, values)
    lab.write_compartment(tensors, replace(card, **values))


def of_nan(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.mean"][0, 0] = torch.nan


def of_an_endless_prompt(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["prompt.tokens"].flatten()[0] = torch.inf


def of_another_rank(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.basis"] = tensors["fine.basis"][..., :3]


def of_other_clusters(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.rest"] = torch.ones(7)


def of_wrong_shares(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.log_share"] += 1


def of_negative_variance(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.rest"] *= -1


def of_a_wider_prompt(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["prompt.tokens"] = torch.zeros(5, 2, 99)


def without_its_mean(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    del tensors["fine.mean"]


def of_doubles(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    tensors["fine.mean"] = tensors["fine.mean"].double()


def of_an_empty_cluster(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    """Enough images for two Gaussians, the second one of none of them."""
    for name in [name for name in tensors if name.startswith("fine.")]:
        tensors[name] = torch.cat([tensors[name]] * 2)
    tensors["fine.mean"][1] += 1
    tensors["fine.log_share"][1] = -1e4
    card["n"], card["class_counts"] = 600, {"digit1": 600}


def of_more_images(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    card["n"] = 10**6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_nan, "a number that is not finite, in mean"),
        (of_an_endless_prompt, "it holds a number that is not finite, in prompt"),
        (of_another_rank, "its closed form has basis of shape"),
        (of_other_clusters, r"rest of shape \(7,\), expected \(1,\)"),
        (of_wrong_shares, "do not add up to 1"),
        (of_negative_variance, "a negative variance"),
        (of_a_wider_prompt, "does not hold the tensors that its card describes"),
        (without_its_mean, "does not hold the tensors that its card describes"),
        (of_more_images, "its card says 1000000"),
        (of_doubles, "its closed form has mean of type torch.float64, expected torch.float32"),
        (of_an_empty_cluster, "its closed form has a number that is not finite"),
    ],
)
def test_a_compartment_that_cannot_be_one_is_refused(
    change: Any, said: str, central: Store, home: Path, tmp_path: Path
) -> None:
    lab = Path(shutil.copytree(home, tmp_path / "lab"))
    rewritten(lab / "compartments" / "digit1", change)
    before = tree(central.path)
    with pytest.raises(BadInput, match=said):
        add_compartment(central, lab / "compartments" / "digit1")
    assert tree(central.path) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "card.json").unlink(), "is no compartment: expected a folder with"),
        (lambda folder: (folder / "more").touch(), "is no compartment: expected a folder with"),
        (lambda folder: shutil.rmtree(folder), "is no compartment: expected a folder with"),
        (lambda folder: _link(folder / "README.md"), "is no compartment: expected a folder with"),
        (lambda folder: (folder / "compartment.safetensors").write_bytes(b"x" * 99), "is damaged"),
        (lambda folder: _edit(folder / "card.json", "seed", 5), "do not belong together"),
        (
            lambda folder: _edit(folder / "card.json", "n", math.nan),
            "its n is nan, expected a whole number of at least 1",
        ),
        (lambda folder: _edit(folder / "card.json", "n", 99.5), "its n is 99.5, expected a whole number"),
        (lambda folder: _edit(folder / "card.json", "n", True), "its n is True, expected a whole number"),
        (lambda folder: _edit(folder / "card.json", "source", 5), "its source is 5, expected a text"),
        (lambda folder: _edit(folder / "card.json", "class_counts", {"1": -9}), "class_counts is .* images for each"),
        (lambda folder: _edit(folder / "card.json", "class_counts", [99]), "class_counts is .* images for each class"),
        (lambda folder: _edit(folder / "card.json", "settings", []), "its settings is .* a mapping of names"),
        (lambda folder: _edit(folder / "card.json", "settings", {"spent_epsilon": 1.0}), "spent_epsilon and delta, or"),
        (lambda folder: _edit(folder / "card.json", "image_shape", [1, 8]), "expected channel, height and width"),
        (lambda folder: _edit(folder / "card.json", "sigma_range", [0.1, math.inf]), "the least and the largest"),
        (lambda folder: _append(folder / "README.md"), "its README.md is not as a fit writes it"),
        (lambda folder: _append(folder / "card.json"), "its card.json is not as a fit writes it"),
        (lambda folder: _edit(folder / "card.json", "backbone_sha256", "f" * 64), "fitted on another backbone"),
    ],
)
def test_damage_is_refused(damage: Any, said: str, central: Store, home: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(home / "compartments" / "digit1", tmp_path / "digit1"))
    damage(folder)
    before = tree(central.path)
    with pytest.raises(BadInput, match=said):
        add_compartment(central, folder)
    assert tree(central.path) == before


def _link(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def _edit(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}, sort_keys=True, indent=2) + "\n")


def test_nothing_is_lost_wherever_adding_is_cut(central: Store, home: Path, tmp_path: Path) -> None:
    folder = home / "compartments" / "digit1"
    whole = Store(Path(shutil.copytree(central.path, tmp_path / "whole")))
    for k in range(operations_of(lambda: add_compartment(whole, folder))):
        cut = Store(Path(shutil.copytree(central.path, tmp_path / str(k))))
        with failing_at(k), pytest.raises(Fault):
            add_compartment(cut, folder)
        assert faults(Store.open(cut.path)) == []
        add_compartment(cut, folder)
        assert tree(cut.path, "ledger") == tree(whole.path, "ledger")


def _append(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def test_a_backbone_is_not_given_away_with_the_compartments_of_owners(home: Path) -> None:
    """An owner has fitted into the folder that was exported before."""
    before = tree(home)
    with pytest.raises(BadInput, match="holds compartments or logs of owners"):
        export_backbone(Store.open(home), home)
    assert tree(home) == before


def test_exporting_twice_and_onto_another_store(store: Path, tmp_path: Path) -> None:
    exported = export_backbone(Store.open(store), tmp_path / "out")
    before = tree(exported.path)
    export_backbone(Store.open(store), tmp_path / "out")
    assert tree(exported.path) == before
    info = json.loads((tmp_path / "out" / "store.json").read_text()) | {"public_data_sha256": "0" * 64}
    (tmp_path / "out" / "store.json").write_text(json.dumps(info))
    with pytest.raises(BadInput, match="holds a store with another backbone"):
        export_backbone(Store.open(store), tmp_path / "out")
