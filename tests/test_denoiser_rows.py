"""The benchmark of denoisers. Oracles: `heldout_error` and the composed model on the same images, sums, limits."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import denoisers
from benchmarks.denoiser_rows import Group, Rows, composed, differences, errors, joined
from cdm_lightning.denoiser import per_image
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.store import BACKBONE, Store
from datamodules import ShardDataModule
from tests.conftest import Fit

LEVELS = (5.0, 0.5, 0.1)
N = 6
LABELLED = ("--model.class_labels", "true")


@pytest.fixture(scope="module")
def monolith(parts: Path, workplace: Path, fit: Fit) -> Path:
    """Return a store of the same images as the two owners', as one source."""
    return one_source(parts, workplace / "one_store", fit, "--data.root", str(workplace / "one"))


def one_source(parts: Path, place: Path, fit: Fit, *options: str) -> Path:
    place.mkdir()
    for name in ("store.json", BACKBONE):
        shutil.copy(parts / name, place / name)
    assert fit(place, "all", "--data.split", "random:1", *LABELLED, *options) == 0
    return place


def held_out(root: Path, source: str) -> Tensor:
    return from_uint8(ShardDataModule(str(root)).images(source, "heldout")[1][:N])


def as_in_heldout_error(x_0: Tensor, source: str, label: str | None = None) -> Group:
    return Group(source, label, x_0, torch.randn(x_0.shape, generator=generator(0, "heldout")))


def means(rows: Rows) -> dict[str, list[float]]:
    return {name: row.mean(1).tolist() for name, row in rows.items()}


@pytest.mark.parametrize("label", [None, "digit3"])
def test_rows_are_the_errors_of_their_denoisers(parts: Path, workplace: Path, label: str | None) -> None:
    store = open_compartments(Store.open(parts), "all", sigma_switch=None, device="cpu")
    own = store if label is None else store.under(label)
    x_0 = held_out(workplace / "parts", "part1")
    with torch.inference_mode():
        found = means(errors(as_in_heldout_error(x_0, "part1", label), store, {"same": store}, LEVELS))
    uniform = own.composed("uniform")
    expected = {
        "closed_form": own.closed_forms["part1"].denoise,
        "own": own["part1"],
        "posterior": own.composed("posterior"),
        "draft": own.composed("draft"),
        "uniform": uniform,
        "same": own["part0"],
    }
    for name, denoise in expected.items():
        assert found[name] == pytest.approx(heldout_error(denoise, x_0, LEVELS), rel=1e-4), name
    above = LEVELS.index(5.0)
    assert store.sigma_switch < 5
    assert found["closed_form_of_union"][above] == pytest.approx(found["posterior"][above], rel=1e-5)
    assert found["closed_form_of_union"][-1] != pytest.approx(found["posterior"][-1], rel=1e-3)


def test_a_network_at_every_level_leaves_the_weights_as_they_are(parts: Path, workplace: Path) -> None:
    """Above the store's switch the evidence is exact, also where the networks denoise."""
    switched, never = (
        open_compartments(Store.open(parts), "all", sigma_switch=switch, device="cpu") for switch in (None, math.inf)
    )
    x_0 = held_out(workplace / "parts", "part0")
    for sigma in LEVELS:
        level = torch.full((len(x_0),), sigma)
        x = x_0 + per_image(level, x_0) * torch.randn(x_0.shape, generator=generator(1, "noise"))
        expected = switched.composed("posterior").weights(x, level)
        torch.testing.assert_close(composed(never).weights(x, level), expected)


def test_the_halves_add_up_and_the_best_monolith_is_taken_at_every_level() -> None:
    posterior, own, a, b = torch.rand(4, 2, 50, generator=generator(0, "errors")).unbind()
    a[0] -= 1
    b[1] -= 1
    found = differences({"posterior": posterior, "own": own, "a": a, "b": b}, ["a", "b"])
    weights, compartments, whole = ([one["value"] for one in row] for row in found.values())
    assert whole == pytest.approx([x + y for x, y in zip(weights, compartments, strict=True)], abs=1e-6)
    expected = [float((posterior[0] - a[0]).mean()), float((posterior[1] - b[1]).mean())]
    assert whole == pytest.approx(expected, abs=1e-6)
    assert list(differences({"posterior": posterior, "own": own}, [])) == ["weights: posterior - own"]


def test_groups_are_joined_by_images_in_the_rows_that_all_have() -> None:
    one, two = torch.rand(2, 3), torch.rand(2, 4)
    found = joined([{"own": one, "draft": one}, {"own": two}])
    assert list(found) == ["own"]
    assert torch.equal(found["own"], torch.cat([one, two], 1))


def run(monkeypatch: pytest.MonkeyPatch, out: Path, store: Path, root: Path, *options: str) -> None:
    monkeypatch.setattr(denoisers, "RESULTS", out)
    where = ("--store", str(store), "--root", str(root), "--name", "found")
    monkeypatch.setattr(sys, "argv", ["denoisers", *where, "--per_source", str(N), *options])
    denoisers.main()


@pytest.mark.parametrize("by_class", [(), ("--by_class",)])
def test_a_run_says_what_it_compared(
    parts: Path,
    monolith: Path,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    by_class: tuple[str, ...],
) -> None:
    capsys.readouterr()
    run(monkeypatch, tmp_path, parts, workplace / "parts", "--against", f"one={monolith}", *by_class)
    result = json.loads((tmp_path / "found.json").read_text())
    assert result["n"] + result["n_of_unknown_class"] == 2 * N
    assert result["by_class"] is bool(by_class)
    assert result["sigma_switch"]["of_the_denoisers"] == "inf"
    assert set(result["mse"]["opponents"]) == {"one"}
    columns = {len(row) for rows in result["mse"].values() for row in rows.values()}
    assert columns == {len(result["sigma"])}
    assert capsys.readouterr().out.startswith(f"{result['n']} held-out images\n")


def test_a_prompt_sets_the_highest_switch(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    assert fit(copy, "[digit1]", "--model.compartment", "tokens", "--trainer.max_steps", "2") == 0
    card = Store.open(copy).read_card("digit1")
    assert card.sigma_range is not None
    assert denoisers.opened(Store.open(copy)).sigma_switch == pytest.approx(card.sigma_range[1])
    assert denoisers.opened(Store.open(store)).sigma_switch == math.inf


def test_an_opponent_of_other_images_is_refused(
    parts: Path,
    monolith: Path,
    store: Path,
    workplace: Path,
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.txt"
    out.write_text(ShardDataModule(str(workplace / "one")).images("part0", "train")[0][0] + "\n")
    options = ("--data.root", str(workplace / "one"), "--data.exclude", str(out))
    fewer = one_source(parts, tmp_path / "fewer", fit, *options)
    for path, root, options, what in (
        (parts, "parts", ("--against", f"x={fewer}"), "'x' was fitted on other training images than all sources"),
        (parts, "parts", ("--against", f"x={parts}"), "'x' has 2 sources: a monolith has one"),
        (parts, "parts", ("--against", f"own={monolith}"), "a label that names no other row"),
        (parts, "parts", ("--against", str(monolith)), "expected LABEL=STORE"),
        (store, "shards", ("--by_class",), "--by_class needs model.class_labels"),
        (parts, "one", (), "source 'part0' of"),
    ):
        with pytest.raises(SystemExit) as refused:
            run(monkeypatch, tmp_path, path, workplace / root, *options)
        assert refused.value.code == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()
