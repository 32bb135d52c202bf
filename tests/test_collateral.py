"""`collateral`. Oracles: stores with and without a source, a compartment changed by hand, differences made by hand."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.collateral import collateral, grey_difference
from cdm_lightning.composition import draw_source
from cdm_lightning.generation import Settings
from cdm_lightning.outputs import outputs_of
from cdm_lightning.seeding import image_generators, uniform
from cdm_lightning.sheets import framed
from cdm_lightning.store import Store
from tests.conftest import Fit
from tests.test_forget import forget

N, STEPS = 12, 5
QUICK = ("--n", str(N), "--steps", str(STEPS))
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", "3")


@pytest.fixture(scope="module")
def before(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of three digits, one of them with a prompt; read it, do not change it."""
    place = export_backbone(Store.open(store), tmp_path_factory.mktemp("before") / "store").path
    assert fit(place, "[digit0, digit1]") == 0
    assert fit(place, "[digit2]", *TOKENS) == 0
    return place


@pytest.fixture
def mine(before: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(before, tmp_path / "mine"))


def report(before: Path, now: Path, place: Path, *options: str, code: int = 0) -> dict[str, Any]:
    where = ("--before", str(before), "--store", str(now), "--json", str(place / "c.json"))
    assert main(["collateral", *where, *QUICK, *options]) == code
    found: dict[str, Any] = json.loads((place / "c.json").read_text())
    return found


@pytest.mark.parametrize(
    "options", [(), ("--strategy", "assign", "--sampler", "dpmpp_2m"), ("--strategy", "posterior")]
)
def test_the_others_alone_are_exactly_what_they_were(
    options: tuple[str, ...], before: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(mine, "digit1") == 0
    capsys.readouterr()
    found = report(before, mine, tmp_path, *options)
    assert found["gone"] == ["digit1"]
    assert [row["source"] for row in found["alone"]] == ["digit0", "digit2"]
    assert all((row["same_bytes"], row["largest"], row["rms"]) == (True, 0, 0) for row in found["alone"])
    assert "verdict: each of the 2 other sources alone is what it was, exactly" in capsys.readouterr().out


def test_who_is_drawn_is_what_the_two_priors_draw(before: Path, mine: Path, tmp_path: Path) -> None:
    assert forget(mine, "digit1") == 0
    found = report(before, mine, tmp_path, "--strategy", "assign", "--seed", "7")["composed"]
    draws = []
    for prior in (found["prior"]["before"], found["prior"]["now"]):
        assert math.isclose(sum(prior.values()), 1)
        weights = torch.tensor(list(prior.values()), dtype=torch.float64)[:, None].expand(-1, N)
        drawn = draw_source(weights, uniform(image_generators(7, range(N), "source")))
        draws.append([list(prior)[i] for i in drawn.tolist()])
    assert found["drawn"] == [list(pair) for pair in zip(*draws, strict=True)]
    same = sum(old == new for old, new in found["drawn"])
    assert 0 < same < N
    assert found["same"] == same  # a picture is a function of its noise and of the source that it follows
    ratio = found["prior"]["now"]["digit0"] / found["prior"]["before"]["digit0"]
    assert math.isclose(ratio, 1 / (1 - found["prior"]["before"]["digit1"]))


def test_nothing_forgotten_changes_nothing(
    before: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(before, mine, tmp_path)
    assert "delete" not in capsys.readouterr().out
    assert found["gone"] == []
    assert (found["composed"]["same"], found["composed"]["rms"]) == (N, None)


def test_a_changed_compartment_is_found_and_named(
    before: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(mine, "digit1") == 0
    tensors, card = Store.open(mine).read_compartment("digit2")
    tensors["prompt.tokens"].flatten()[::2].add_(0.1)
    Store.open(mine).write_compartment(tensors, card)
    capsys.readouterr()
    found = report(before, mine, tmp_path, code=2)
    assert [(row["source"], row["holds"]) for row in found["alone"]] == [("digit0", True), ("digit2", False)]
    assert found["alone"][1]["largest"] >= found["alone"][1]["rms"] > 0
    assert "forgetting should not have changed digit2, but" in capsys.readouterr().err


def test_bytes_that_do_not_show_in_samples_are_found_too(before: Path, mine: Path, tmp_path: Path) -> None:
    tensors, card = Store.open(mine).read_compartment("digit0")
    Store.open(mine).write_compartment(tensors, replace(card, seed=card.seed + 1))
    row = report(before, mine, tmp_path, code=2)["alone"][0]
    assert (row["same_bytes"], row["largest"], row["holds"]) == (False, 0, False)


def test_a_source_whose_samples_were_forgotten_may_differ(
    before: Path, mine: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = sorted(json.loads((workplace / "shards" / "digit1" / "manifest.json").read_text())["samples"])
    samples = [word for key in keys[:8] for word in ("--sample", key)]
    assert main(["forget", "--store", str(mine), "--root", str(workplace / "shards"), *samples]) == 0
    capsys.readouterr()
    changed = report(before, mine, tmp_path)["alone"][1]
    assert (changed["source"], changed["samples_forgotten"], changed["same_bytes"]) == ("digit1", True, False)
    assert changed["rms"] > 0
    said = capsys.readouterr().out
    assert "fitted again without some of their samples: digit1" in said
    assert "each of the 2 other sources alone" in said


def test_a_source_that_left_and_came_back_is_what_it_was(
    before: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(mine, "digit1") == 0
    assert main(["store", "add", str(before / "compartments" / "digit1"), "--store", str(mine)]) == 0
    capsys.readouterr()
    row = report(before, mine, tmp_path)["alone"][1]
    assert (row["source"], row["samples_forgotten"], row["same_bytes"], row["largest"]) == ("digit1", False, True, 0)
    assert "each of the 3 other sources alone" in capsys.readouterr().out


def test_differences_are_in_grey_levels_and_nan_is_one(before: Path, mine: Path) -> None:
    old, new = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([1.0, 0.0, math.nan])
    assert grey_difference(old, new).tolist() == [255, 0, math.inf]
    found = collateral(Store.open(before), Store.open(mine), Settings(n=3, steps=STEPS, batch_size=2))
    assert found.holds
    assert [tuple(old.shape) for old, _ in found.samples] == [(3, 1, 8, 8)] * 4


def test_the_picture_shows_before_now_and_difference(before: Path, mine: Path, tmp_path: Path) -> None:
    assert forget(mine, "digit1") == 0
    report(before, mine, tmp_path, "--strategy", "assign", "--picture", str(tmp_path / "c.png"))
    picture = np.asarray(Image.open(tmp_path / "c.png"))
    cells = [[picture[2 + 66 * r : 66 + 66 * r, 2 + 66 * c : 66 + 66 * c] for c in range(N)] for r in range(9)]
    assert picture.shape == (2 + 66 * 9, 2 + 66 * N)
    for first in (0, 3, 6):
        for old, new, difference in zip(*cells[first : first + 3], strict=True):
            assert np.array_equal(np.abs(old.astype(int) - new), difference)
    assert not any(cell.any() for cell in cells[2] + cells[5])
    assert any(cell.any() for cell in cells[8])
    for source in ("digit0", "digit1"):
        assert {path.name for path in outputs_of(mine / "runs", source)} == {"c.png", "c.json"}


def test_a_table_of_images_has_white_between_them() -> None:
    table = framed(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)[:, :, None, None, None], gap=1)
    assert table.tolist() == [[[255] * 5, [255, 1, 255, 2, 255], [255] * 5, [255, 3, 255, 4, 255], [255] * 5]]


@pytest.mark.parametrize("fault", ["swapped", "emptied", "another backbone", "no place"])
def test_what_cannot_be_compared_is_refused(
    fault: str, before: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("digit0", "digit1", "digit2") if fault == "emptied" else ("digit0",):
        assert forget(mine, source) == 0
    options: tuple[str, ...] = ()
    if fault == "another backbone":
        info = json.loads((mine / "store.json").read_text())
        (mine / "store.json").write_text(json.dumps(info | {"public_data_sha256": "0" * 64}))
    if fault == "no place":
        options = ("--picture", str(tmp_path))
    one, other = (mine, before) if fault == "swapped" else (before, mine)
    capsys.readouterr()
    assert main(["collateral", "--before", str(one), "--store", str(other), *QUICK, *options]) == 2
    said = {
        "swapped": f"{mine} has no compartment of digit0, which {before} has: name the copy",
        "emptied": f"{mine} has no compartment left",
        "another backbone": "have different backbones: compare a store with a copy of itself",
        "no place": f"--picture {tmp_path} is no place for a file",
    }
    assert said[fault] in capsys.readouterr().err
