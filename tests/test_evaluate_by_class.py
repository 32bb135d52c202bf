"""`evaluate --by_class`. Oracles: compartments under a class sampled by hand, `sample --label`, counted evaluations."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdm_lightning import cost
from cdm_lightning.cli import main
from cdm_lightning.comparison_table import terminal
from cdm_lightning.generation import Batch, Settings, sample_batch
from cdm_lightning.images import to_uint8
from cdm_lightning.line_up import contender, opened_models
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.stratification import class_counts, spread, strata
from tests.conftest import Fit
from tests.decoding import decode_image
from tests.test_evaluate import (
    STEPS,
    evaluate,
    extractor,  # noqa: F401
    images,
    refuse,
    rows_of,
)
from tests.test_validate import copied

N = 24
SHAPE = (1, 8, 8)
SETTINGS = Settings(n=N, steps=STEPS)
BY_CLASS = ("--by_class", "--n", str(N))
OWN: tuple[Strategy, ...] = ("uniform", "posterior", "routed", "assign", "draft")


@pytest.fixture(scope="module")
def by_class(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation of every row; read it, do not change it."""
    out = tmp_path_factory.mktemp("by_class") / "out"
    evaluate(parts, out, *BY_CLASS, "--against", f"twin={parts}")
    return out


def sampled_by_hand(store: Path, strategy: Strategy, switch: float | None = None) -> tuple[Tensor, float]:
    """Return samples and evaluations per image: all images of a class in one batch."""
    everything = open_compartments(Store.open(store), "all", sigma_switch=switch, device="cpu")
    expected, evaluations = torch.zeros(N, *SHAPE, dtype=torch.uint8), 0
    for label, indices in strata(class_counts(Store.open(store), everything.compartments.keys()), N).items():
        under = everything.under(label)
        expected[indices] = to_uint8(sample_batch(under.composed(strategy), SHAPE, indices, SETTINGS).images)
        evaluations += under.evaluations
    return expected, evaluations / N


@pytest.mark.parametrize("strategy", OWN)
def test_each_image_is_that_of_its_class_and_place(strategy: Strategy, parts: Path, by_class: Path) -> None:
    expected, evaluations = sampled_by_hand(parts, strategy)
    assert torch.equal(images(by_class, strategy), expected)
    assert rows_of(by_class)[strategy]["network_evaluations_per_image"] == evaluations > 0


def test_closed_forms_are_those_of_the_class(parts: Path, by_class: Path) -> None:
    assert torch.equal(images(by_class, "closed_form"), sampled_by_hand(parts, "posterior", 0.0)[0])
    assert rows_of(by_class)["closed_form"]["network_evaluations_per_image"] == 0


def test_an_opponent_is_sampled_under_its_own_classes(by_class: Path) -> None:
    assert torch.equal(images(by_class, "twin"), images(by_class, "routed"))
    assert rows_of(by_class)["twin"]["by_class"] is True


@pytest.mark.parametrize("strategy", ["routed", "assign"])
def test_sample_with_a_label_makes_the_same_image(strategy: str, parts: Path, by_class: Path, tmp_path: Path) -> None:
    classes = spread(class_counts(Store.open(parts), ["part0", "part1"]), N)
    k = 17
    where = ["--store", str(parts), "--sources", "all", "--out", str(tmp_path)]
    how = ["--label", classes[k], "--n", str(k + 1), "--steps", str(STEPS), "--strategy", strategy]
    assert main(["sample", *where, *how]) == 0
    found = decode_image((tmp_path / f"{k:05d}.png").read_bytes(), SHAPE)
    assert torch.equal(images(by_class, strategy)[k], found)


def test_public_has_no_class(store: Path, parts: Path, by_class: Path, tmp_path: Path) -> None:
    opened = contender(Store.open(parts), ["part0"], "public").open("cpu")
    expected = to_uint8(sample_batch(opened.composed, SHAPE, range(N), SETTINGS).images)
    assert torch.equal(images(by_class, "public"), expected)
    row = rows_of(by_class)["public"]
    assert (row["by_class"], row["model"]["class_counts"]) == (False, {})


def test_images_of_a_batch_have_one_class_and_batches_are_not_too_large(parts: Path) -> None:
    models = opened_models(Store.open(parts), ["part0", "part1"], ["routed"], [], "cpu", by_class=True)
    opened = models["routed"][1]
    classes = spread(class_counts(Store.open(parts), ["part0", "part1"]), N)
    batches = list(opened.batches(N, 2))
    assert sorted(k for _, indices in batches for k in indices) == list(range(N))
    for composed, indices in batches:
        assert len(indices) <= 2
        (label,) = {classes[k] for k in indices}
        assert composed is opened.by_class[label].composed


def test_the_table_says_that_it_is_by_class(parts: Path, by_class: Path) -> None:
    report = json.loads((by_class / "table.json").read_text())
    counts = class_counts(Store.open(parts), ["part0", "part1"])
    assert (report["by_class"], report["classes"]) == (True, dict(Counter(spread(counts, N))))
    assert report["rows"][0]["model"]["class_counts"] == counts
    last = f"n {N} by class, heun {STEPS} steps, seed 0,"
    assert terminal(report).splitlines()[-1].startswith(last)
    assert (by_class / "table.md").read_text().splitlines()[-1].startswith(f"- {last}")
    assert "public: sampled without a class" in terminal(report)


def test_with_classes_and_without_are_two_rows_but_for_public(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = []

    def noted(*arguments: Any, **named: Any) -> Batch:
        sampled.append(list(arguments[2]))
        return sample_batch(*arguments, **named)

    evaluate(parts, tmp_path, "--n", str(N), "--strategies", "public", "closed_form", "--base", "public")
    assert json.loads((tmp_path / "table.json").read_text())["by_class"] is False
    before = images(tmp_path, "closed_form")
    monkeypatch.setattr("cdm_lightning.fidelity.sample_batch", noted)
    evaluate(parts, tmp_path, *BY_CLASS, "--strategies", "public", "closed_form", "--base", "public")
    assert sampled == list(strata(class_counts(Store.open(parts), ["part0", "part1"]), N).values())
    assert not torch.equal(images(tmp_path, "closed_form"), before)
    monkeypatch.setattr("cdm_lightning.comparison.images_of_batches", refuse)
    evaluate(parts, tmp_path, *BY_CLASS, "--strategies", "public", "closed_form", "--base", "public")


def test_seconds_and_memory_are_of_the_largest_batch_of_a_class(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = opened_models(Store.open(parts), ["part0", "part1"], ["public", "routed"], [], "cpu", by_class=True)
    sampled = []

    def noted(composed: Any, shape: Any, indices: Any, *_: Any, **__: Any) -> Batch:
        sampled.append((composed, list(indices)))
        return Batch(torch.zeros(len(indices), *SHAPE), None, [])

    monkeypatch.setattr("cdm_lightning.cost.sample_batch", noted)
    counts = class_counts(Store.open(parts), ["part0", "part1"])
    largest = max(strata(counts, N).items(), key=lambda stratum: len(stratum[1]))
    cost.seconds_in_turns(models["routed"][1], models["public"][1], SETTINGS)
    own, public = models["routed"][1].by_class[largest[0]].composed, models["public"][1].composed
    assert sampled == [(own, largest[1]), (public, list(range(N)))]
    sampled.clear()
    monkeypatch.setattr("cdm_lightning.cost.Contender.open", lambda *_: models["routed"][1])
    cost._peak_of_sampling(models["routed"][0], replace(SETTINGS, batch_size=2), 1)
    assert [len(indices) for _, indices in sampled] == [2]


# --- bad input


def refused(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """Return the one sentence that evaluate ends with; nothing is sampled, or written."""
    monkeypatch.setattr("cdm_lightning.comparison.images_of_batches", refuse)
    capsys.readouterr()
    assert main(["evaluate", "--sources", "all", "--out", str(out), *BY_CLASS, *options]) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n"), out.exists()) == ("", 1, False)
    return found.err


def test_a_store_without_class_labels_is_told(
    store: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(tmp_path / "out", capsys, monkeypatch, "--store", str(store))
    assert f"source 'digit0' of {store} was fitted without class labels: fit it again with model.class_labels" in said
    said = refused(tmp_path / "out", capsys, monkeypatch, "--store", str(parts), "--against", f"other={store}")
    assert f"source 'digit0' of {store} was fitted without class labels" in said


def test_an_opponent_that_lacks_a_class_is_told(
    store: Path,
    parts: Path,
    fit: Fit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = copied(store, tmp_path / "store", [])
    assert fit(own, "[digit0]", "--model.class_labels", "true") == 0
    said = refused(tmp_path / "out", capsys, monkeypatch, "--store", str(parts), "--against", f"other={own}")
    assert f"images of the class 'digit1', but no source of {own} has it: leave 'other' out" in said
