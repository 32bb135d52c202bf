"""`sample`, by command line: pictures, credits, and noise that belongs to the image, not to its batch."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdm_lightning.cli import main
from cdm_lightning.errors import BadInput
from cdm_lightning.generation import Settings, sample_batch
from cdm_lightning.packing import open_compartments
from cdm_lightning.sampling import karras_sigmas, sample
from cdm_lightning.seeding import image_generators, normal
from cdm_lightning.sheets import grid
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy


def run(store: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main(["sample", "--store", str(store), "--out", str(out), *options]) == 0
    return json.loads((out / "credits.json").read_text())  # type: ignore[no-any-return]


def pictures(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("[0-9]*.png"))])


@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [
        ("routed", ("--churn", "2")),
        ("assign", ("--churn", "2")),
        ("draft", ("--churn", "2")),
        ("posterior", ("--churn", "2")),
        ("uniform", ("--churn", "2")),
        ("routed", ("--sampler", "dpmpp_2m")),
        ("routed", ("--sampler", "ancestral")),
        ("routed", ("--start", "switch")),
        ("draft", ("--start", "switch")),
    ],
)
def test_batches_do_not_matter(strategy: Strategy, sampling: tuple[str, str], store: Path, tmp_path: Path) -> None:
    options = ("--sources", "all", "--n", "64", "--steps", "6", *sampling, "--strategy", strategy)
    one = run(store, tmp_path / "one", *options, "--batch_size", "1")
    many = run(store, tmp_path / "many", *options, "--batch_size", "64")
    difference = np.abs(pictures(tmp_path / "one") - pictures(tmp_path / "many"))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    assert [image["drawn"] for image in one["images"]] == [image["drawn"] for image in many["images"]]


def test_credits_are_what_the_format_says(store: Path, tmp_path: Path) -> None:
    report = run(store, tmp_path / "out", "--sources", "[digit2, digit0]", "--n", "5", "--steps", "4")
    assert report["sources"] == ["digit0", "digit2"]
    again = run(store, tmp_path / "out", "--sources", "[digit0, digit2]", "--n", "5", "--steps", "4")
    assert again == report, "the order in which sources are named means nothing"
    assert {"store", "seed", "sampler", "steps", "strategy", "images"} <= set(report)
    assert [image["file"] for image in report["images"]] == [f"0000{k}.png" for k in range(5)]
    for image in report["images"]:
        assert image["drawn"] in ("digit0", "digit2")
        assert sum(image["credits"].values()) == pytest.approx(1, abs=1e-5)
        assert len(image["trajectory"]) == 4
        assert [sigma for sigma, _ in image["trajectory"]] == sorted((s for s, _ in image["trajectory"]), reverse=True)
        assert all(sum(weights.values()) == pytest.approx(1, abs=1e-5) for _, weights in image["trajectory"])


@pytest.mark.parametrize(("sampler", "a_step", "saved"), [("heun", 2, 1), ("dpmpp_2m", 1, 0), ("ancestral", 1, 0)])
def test_the_switch_saves_network_evaluations(
    sampler: str, a_step: int, saved: int, store: Path, tmp_path: Path
) -> None:
    options = ("--sources", "all", "--n", "2", "--steps", "18", "--sampler", sampler)
    routed = run(store, tmp_path / "routed", *options)
    without = run(store, tmp_path / "without", *options, "--sigma_switch", "inf")
    assert routed["sampler"] == without["sampler"] == sampler
    assert without["network_evaluations_per_image"] == a_step * 18 - saved
    below = sum(sigma < 3 for sigma, _ in routed["images"][0]["trajectory"])
    assert routed["network_evaluations_per_image"] == a_step * below
    assert below < 12


@pytest.mark.parametrize("strategy", ["routed", "draft", "posterior"])
def test_starting_at_the_switch_takes_the_steps_below_alone(strategy: str, store: Path, tmp_path: Path) -> None:
    options = ("--sources", "all", "--n", "2", "--steps", "7", "--strategy", strategy)
    noise, switch = (run(store, tmp_path / start, *options, "--start", start) for start in ("noise", "switch"))
    levels = [[sigma for sigma, _ in report["images"][0]["trajectory"]] for report in (noise, switch)]
    assert levels[1] == [sigma for sigma in levels[0] if sigma <= 3]
    if strategy != "posterior":
        assert switch["network_evaluations_per_image"] == noise["network_evaluations_per_image"]
    assert (noise["start"], switch["start"]) == ("noise", "switch")


def test_images_that_start_at_the_switch_are_of_the_sources_by_their_numbers(store: Path) -> None:
    """Oracle: the mean of w_i(x) over x ~ p(x; sigma) is lambda_i, whatever the laws of the sources are."""
    compartments, n = open_compartments(Store.open(store), "all", sigma_switch=0.5, device="cpu"), 6000
    composed = compartments.composed("routed")
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trajectory = composed.start(0, range(n))
    weights = composed.weights(trajectory.at_switch(noise), torch.full((n,), 0.5))
    error = weights.std(1) / math.sqrt(n)
    assert ((weights.mean(1) - composed.prior).abs() < 4 * error).all()
    assert weights.max(0).values.median() > 0.9, "sources can be told apart, so this can fail"
    assert trajectory.drawn is not None
    drawn = torch.nn.functional.one_hot(trajectory.drawn, len(weights)).T
    assert (drawn.argmax(0) == weights.argmax(0)).double().mean() > 0.8, "an image follows the source that it is of"
    for given in (
        torch.ones(n),
        *weights,
    ):  # given x, a source is drawn by its weight: the difference is no function of x
        product = (drawn - weights) * given
        assert (product.mean(1).abs() <= 4 * product.std(1) / math.sqrt(n)).all()


@pytest.mark.parametrize("strategy", ["routed", "assign"])
def test_dpmpp_2m_starts_anew_where_routed_draws(strategy: Strategy, store: Path) -> None:
    compartments = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    composed, indices = compartments.composed(strategy), range(4)
    found = sample_batch(composed, (1, 8, 8), indices, Settings(strategy=strategy, sampler="dpmpp_2m", steps=7))

    def by_hand(jump: float) -> torch.Tensor:
        trajectory = composed.start(0, indices)
        noise = normal((4, 1, 8, 8), image_generators(0, indices, "noise"))
        grid = karras_sigmas(7, through=composed.sigma_switch)
        return sample(trajectory, noise, grid, method="dpmpp_2m", on_step=trajectory.on_step, jump=jump)

    with torch.inference_mode():
        assert torch.equal(found.images, by_hand(composed.sigma_switch)) == (strategy == "routed")
        assert torch.equal(found.images, by_hand(math.inf)) == (strategy == "assign")


def test_one_source_is_its_own_credit_and_its_own_sample(store: Path, tmp_path: Path) -> None:
    report = run(store, tmp_path / "out", "--sources", "[digit1]", "--n", "3", "--steps", "4")
    assert all(image["credits"] == {"digit1": 1.0} for image in report["images"])
    run(store, tmp_path / "assign", "--sources", "[digit1]", "--n", "3", "--steps", "4", "--strategy", "assign")
    assert np.abs(pictures(tmp_path / "out") - pictures(tmp_path / "assign")).max() <= 1


@pytest.mark.parametrize("switch", ["0.01", "inf"])
def test_an_image_is_credited_the_same_whatever_switch_it_was_sampled_with(
    switch: str, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run(store, out, "--sources", "all", "--n", "4", "--steps", "4", "--sigma_switch", switch)
    compartments = open_compartments(Store.open(store), "all", sigma_switch=float(switch), device="cpu")
    floor = compartments.public.calibration.floor
    assert float(switch) < floor or switch == "inf"
    assert float(compartments.public.calibration.temperature_at(torch.tensor([floor]))) > 1.05
    options = ("--sources", "all", "--extractor", "none", "--json", str(tmp_path / "credits.json"))
    assert main(["attribute", "--store", str(store), *options, str(out)]) == 0
    again = json.loads((tmp_path / "credits.json").read_text())["images"]
    for image, other in zip(report["images"], again, strict=True):  # those of a picture, in whole grey levels
        assert image["credits"] == pytest.approx(other["credits"], abs=0.02)


def test_what_is_no_image_is_told_and_not_written(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--sources", "all", "--n", "2", "--label", "digit3", "--guidance", "1e9", "--out", str(tmp_path / "out"))
    assert main(["sample", "--store", str(parts), *options]) == 2
    assert "the sampler ran away to numbers that are no image, so nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_seeds_differ_and_repeat(store: Path, tmp_path: Path) -> None:
    options = ("--sources", "all", "--n", "3", "--steps", "4")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(store, tmp_path / name, *options, "--seed", seed)
    assert (tmp_path / "a" / "00001.png").read_bytes() == (tmp_path / "b" / "00001.png").read_bytes()
    assert (tmp_path / "a" / "00001.png").read_bytes() != (tmp_path / "c" / "00001.png").read_bytes()


def test_a_smaller_run_leaves_no_picture_of_a_larger_one(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path / "out", "--sources", "all", "--n", "6", "--steps", "3")
    run(store, tmp_path / "out", "--sources", "all", "--n", "2", "--steps", "3")
    assert sorted(path.name for path in tmp_path.glob("out/*.png")) == ["00000.png", "00001.png", "grid.png"]


def test_grid_lays_images_out_row_by_row() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 64, 64) * 10
    canvas = grid(images, gap=1)
    assert canvas.shape == (1, 131, 196)
    assert [int(canvas[0, 30 + 65 * row, 30 + 65 * column]) for row, column in ((0, 0), (0, 2), (1, 1), (1, 2))] == [
        0,
        20,
        40,
        255,
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sources", "[digit7]"), "unknown source 'digit7'"),
        (("--sources", "[]"), "no source chosen"),
        (("--sources", "all", "--n", "0"), "--n is 0; expected at least 1"),
        (("--sources", "all", "--steps", "1"), "--steps is 1; expected at least 2"),
        (("--sources", "all", "--churn", ".nan"), "--churn is nan; expected a number"),
        (("--sources", "all", "--churn", ".inf"), "--churn is inf; expected a number"),
        (
            ("--sources", "all", "--sampler", "ancestral", "--churn", "2"),
            "--churn is 2.0, but --sampler ancestral has no churn; only heun has",
        ),
        (("--sources", "all", "--start", "switch", "--strategy", "assign"), "choose the strategy routed, draft "),
        (("--sources", "all", "--start", "switch", "--sigma_switch", "inf"), "and no --sigma_switch inf"),
    ],
)
def test_bad_input(
    options: tuple[str, ...], said: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--store", str(store), "--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "mps"])
def test_a_device_that_there_is_not_is_told(name: str) -> None:
    with pytest.raises(BadInput, match=f"--device is {name}; expected cpu, or cuda"):
        Settings(n=1, device=name)
