"""Restoring images. Oracles: Gaussian mixtures conditioned by dense matrices, limits, and files that are written."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdm_lightning.cli import main
from cdm_lightning.composition import ComposedDenoiser, draw_source
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.given_images import MASKS, read_mask
from cdm_lightning.masked_gaussians import MaskedGaussians
from cdm_lightning.restoration import ConditionalDenoiser, Given, levels, restore
from cdm_lightning.restore_command import sheet
from cdm_lightning.sampling import sample
from tests.test_forget import tree

OVER = "which would be written over"
LOST = "is one of the files that are given, and would be lost"

SHAPE = (1, 2, 3)
DIMENSION = 6
KNOWN = torch.tensor([[[True, False, True], [False, True, True]]])
DRAWS = 4000
PRIOR = {"a": 0.3, "b": 0.7}


def law(seed: int, clusters: int = 2, rest: float = 0.05) -> Gaussians:
    """Return a random mixture in six dimensions, float64."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(clusters, DIMENSION, generator=generator, dtype=torch.float64) * 0.7
    square = torch.randn(clusters, DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(square)[0][:, :, :3].contiguous()
    variance = 0.1 + torch.rand(clusters, 3, generator=generator, dtype=torch.float64)
    share = torch.rand(clusters, generator=generator, dtype=torch.float64).add(0.5)
    return Gaussians((share / share.sum()).log(), mean, basis, variance, torch.full((clusters,), rest).double(), SHAPE)


def dense(gaussians: Gaussians, k: int) -> Tensor:
    """Return the covariance of one cluster."""
    basis, rest = gaussians.basis[k], gaussians.rest[k]
    return basis @ torch.diag(gaussians.variance[k] - rest) @ basis.T + rest * torch.eye(DIMENSION).double()


def conditional(gaussians: Gaussians, z: Tensor, noise: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(z[seen]) and mean and covariance of x_0 given z[seen] = x_0[seen] + noise, for one z, densely.

    Args:
        gaussians: the law of x_0.
        z: [dimension].
        noise: variance of the noise in every pixel [dimension].
        seen: bool [dimension].
    """
    logs, means, seconds = [], [], []
    for k in range(len(gaussians.mean)):
        covariance = dense(gaussians, k)
        observed = covariance[seen][:, seen] + torch.diag(noise[seen])
        normal = torch.distributions.MultivariateNormal(gaussians.mean[k][seen], observed)
        logs.append(gaussians.log_share[k] + normal.log_prob(z[seen]))
        gain = covariance[:, seen] @ observed.inverse()
        mean = gaussians.mean[k] + gain @ (z - gaussians.mean[k])[seen]
        means.append(mean)
        seconds.append(covariance - gain @ covariance[seen] + torch.outer(mean, mean))
    share = torch.stack(logs).softmax(0)
    mean = share @ torch.stack(means)
    second = (share[:, None, None] * torch.stack(seconds)).sum(0)
    return torch.stack(logs).logsumexp(0), mean, second - torch.outer(mean, mean)


def union(y: Tensor, noise: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights [source], mean and covariance of x_0 given y[seen], for the union of the laws `a` and `b`."""
    parts = [conditional(form, y, noise, seen) for form in FORMS.values()]
    weights = torch.stack([log + math.log(p) for (log, _, _), p in zip(parts, PRIOR.values(), strict=True)]).softmax(0)
    mean = sum(w * m for w, (_, m, _) in zip(weights, parts, strict=True))
    second = sum(w * (c + torch.outer(m, m)) for w, (_, m, c) in zip(weights, parts, strict=True))
    return weights, mean, second - torch.outer(mean, mean)


FORMS = {"a": law(1), "b": law(2)}
Y = 0.5 * FORMS["a"].mean[0] + 0.5 * FORMS["b"].mean[1]


def composed(laws: dict[str, Gaussians], switch: float = 0.5) -> ComposedDenoiser:
    evidence = {name: GaussianEvidence(form, Calibration.none(), switch) for name, form in laws.items()}
    prior = {name: PRIOR[name] for name in laws}
    return ComposedDenoiser({name: form.denoise for name, form in laws.items()}, evidence, prior, "posterior", switch)


def normal(seed: int, n: int = DRAWS) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoiser(
    known: Tensor,
    tau: float,
    laws: dict[str, Gaussians] = FORMS,
    forms: dict[str, Gaussians] = FORMS,
    n: int = DRAWS,
    calibration: Calibration | None = None,
) -> ConditionalDenoiser:
    """Return the denoiser of n copies of one image, whose unknown pixels hold what must not be used."""
    image = torch.where(known, Y.reshape(SHAPE), torch.nan).expand(n, *SHAPE)
    given = Given(image, known, tau)
    return ConditionalDenoiser(composed(laws), forms, calibration or Calibration.none(), given, normal(9, n))


def draws_of(denoise: ConditionalDenoiser, steps: int = 40) -> Tensor:
    n = len(denoise.given.image)
    return restore(denoise, normal(3, n), levels(denoise.given, steps, 0.5)).flatten(1)


def check_law(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Check mean and covariance of draws within 4.5 deviations of the statistical error."""
    deviation = covariance.diagonal().clamp_min(1e-12).sqrt()
    assert ((x.mean(0) - mean).abs() / deviation * math.sqrt(len(x)) < 4.5).all(), (x.mean(0), mean)
    found = torch.cov(x.T)
    scale = torch.outer(deviation, deviation) * math.sqrt(2 / len(x))
    assert ((found - covariance).abs() / scale < 6).all(), found - covariance


@pytest.mark.parametrize(("level_known", "level"), [(0.0, 3.0), (0.1, 0.4), (0.5, 80.0)])
def test_the_closed_form_under_two_levels_is_the_dense_one(level_known: float, level: float) -> None:
    z = normal(0, 3)
    noise = torch.where(
        KNOWN.flatten(), torch.tensor(level_known, dtype=torch.float64), torch.tensor(level, dtype=torch.float64)
    ).square()
    log_density, denoised = MaskedGaussians(FORMS["a"], KNOWN).posterior(z, level_known, level)
    for k in range(3):
        log, mean, _ = conditional(FORMS["a"], z[k].flatten(), noise, torch.ones(DIMENSION).bool())
        torch.testing.assert_close(log_density[k], log, rtol=0, atol=1e-9)
        torch.testing.assert_close(denoised[k].flatten(), mean, rtol=0, atol=1e-9)


def test_equal_levels_are_the_closed_form() -> None:
    z, sigma = normal(0, 3), torch.full((3,), 0.7, dtype=torch.float64)
    for found, expected in zip(
        MaskedGaussians(FORMS["b"], KNOWN).posterior(z, 0.7, 0.7), FORMS["b"].posterior(z, sigma), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("strategy", ["posterior", "routed"])
def test_unknown_pixels_follow_the_conditional_law(strategy: str, tau: float) -> None:
    denoise = denoiser(KNOWN, tau)
    weights, mean, covariance = union(Y, torch.full((DIMENSION,), tau**2).double(), KNOWN.flatten())
    torch.testing.assert_close(denoise.weights_of_given()[:, 0], weights, rtol=0, atol=1e-6)
    if strategy == "routed":
        denoise.follow(
            draw_source(denoise.weights_of_given(), torch.rand(DRAWS, generator=torch.Generator().manual_seed(4)))
        )
    x = draws_of(denoise)
    if tau == 0:
        assert torch.equal(x[:, KNOWN.flatten()], Y[KNOWN.flatten()].expand(DRAWS, -1))
    check_law(x, mean, covariance)
    torch.testing.assert_close(denoiser(KNOWN, tau).mean()[0].flatten(), mean, rtol=0, atol=1e-5)


def test_noised_images_follow_the_conditional_law() -> None:
    tau, every = 0.4, torch.ones(SHAPE).bool()
    denoise = denoiser(every, tau)
    weights, mean, covariance = union(Y, torch.full((DIMENSION,), tau**2).double(), every.flatten())
    torch.testing.assert_close(denoise.weights_of_given()[:, 0], weights, rtol=0, atol=1e-6)
    check_law(draws_of(denoise), mean, covariance)
    torch.testing.assert_close(denoise.mean()[0].flatten(), mean, rtol=0, atol=1e-6)


def test_denoising_is_exact_for_any_denoiser() -> None:
    """A complete image needs no closed form: the draws follow the law of D, however wrong the closed form is."""
    tau, every = 0.4, torch.ones(SHAPE).bool()
    denoise = denoiser(every, tau, {"a": law(5)}, {"a": law(6)})
    _, mean, covariance = conditional(law(5), Y, torch.full((DIMENSION,), tau**2).double(), every.flatten())
    check_law(draws_of(denoise), mean, covariance)


@pytest.mark.parametrize("floor", [0.05, 0.5])
def test_weights_of_a_noised_image_are_those_of_the_composed_model(floor: float) -> None:
    calibration = Calibration(torch.tensor([0.1, 0.5]), torch.tensor([9.0, 2.0]), floor)
    for tau in (0.02, 0.2, 0.7):
        every = torch.ones(SHAPE).bool()
        denoise = denoiser(every, tau, n=2, calibration=calibration)
        evidence = {name: GaussianEvidence(form, calibration, 0.5) for name, form in FORMS.items()}
        model = ComposedDenoiser(dict.fromkeys(FORMS, FORMS["a"].denoise), evidence, PRIOR, "posterior", 0.5)
        expected = model.weights(denoise.given.image, torch.full((2,), tau).double())
        torch.testing.assert_close(denoise.weights_of_given(), expected, rtol=0, atol=1e-5)


def test_all_known_is_the_image_itself() -> None:
    every = torch.ones(SHAPE).bool()
    for x in (draws_of(denoiser(every, 0.0, n=2)), denoiser(every, 0.0, n=2).mean().flatten(1)):
        assert torch.equal(x, Y.expand(2, -1))


def test_none_known_is_unconditional_sampling() -> None:
    denoise = denoiser(torch.zeros(SHAPE).bool(), 0.0, n=8)
    grid, model, noise = levels(denoise.given, 20, 0.5), composed(FORMS), normal(3, 8)
    start = noise + model(noise * 80, torch.full((8,), 80.0).double()) / 80
    torch.testing.assert_close(restore(denoise, noise, grid), sample(model, start, grid), rtol=0, atol=1e-9)


def test_below_the_floor_known_pixels_are_seen_with_noise() -> None:
    """Oracle: D of the image whose known pixels carry the noise of the others; above the floor that is not so."""
    denoise = denoiser(KNOWN, 0.0, n=4, calibration=Calibration(torch.ones(1), torch.ones(1), 0.2))
    x = normal(7, 4)
    for sigma, same in ((0.1, True), (0.3, False)):
        level = torch.full((4,), sigma).double()
        even = torch.where(KNOWN, Y.reshape(SHAPE) + sigma * denoise.noise, x)
        expected = composed(FORMS).mixed(even, level, denoise.weights(x, level))
        unknown = (~KNOWN).expand(4, *SHAPE)
        assert torch.allclose(denoise(x, level)[unknown], expected[unknown], rtol=0, atol=1e-9) == same


def test_sources_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([[0.5, 0.0, 1.0], [0.2, 1.0, 0.0], [0.3, 0.0, 0.0]])
    assert draw_source(weights, torch.zeros(3).double()).tolist() == [0, 1, 0]
    assert draw_source(weights, torch.full((3,), 0.6, dtype=torch.float64)).tolist() == [1, 1, 0]
    assert draw_source(weights, torch.full((3,), 1 - 1e-12, dtype=torch.float64)).tolist() == [2, 1, 0]


def test_built_in_masks_by_hand() -> None:
    rows = {word: ["".join(".#"[int(p)] for p in row) for row in read_mask(word, (1, 4, 4))[0]] for word in MASKS}
    assert rows == {
        "left": ["##.."] * 4,
        "right": ["..##"] * 4,
        "top": ["####", "####", "....", "...."],
        "bottom": ["....", "....", "####", "####"],
        "centre": ["....", ".##.", ".##.", "...."],
    }


def test_a_mask_is_cut_as_images_are_and_resized_by_the_nearest_pixel(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 2, (4, 4), dtype=np.uint8)
    wide = np.zeros((12, 20), dtype=np.uint8)
    wide[:, 4:16] = small.repeat(3, 0).repeat(3, 1)
    Image.fromarray(wide * 255).save(tmp_path / "mask.png")
    assert read_mask(str(tmp_path / "mask.png"), (3, 4, 4)).tolist() == [(small == 1).tolist()] * 3


def test_the_sheet_has_a_row_per_image() -> None:
    images = torch.tensor([10, 20]).byte()[:, None, None, None].expand(2, 1, 64, 64)
    known = torch.arange(64).expand(1, 64, 64) >= 32
    found = sheet(images, known, torch.tensor([1, 2, 3, 4]).byte()[:, None, None, None].expand(4, 1, 64, 64), gap=1)
    assert found.shape == (1, 131, 4 * 65 + 1)
    row = [found[0, 1 + 65 * r + 9, 1 + 65 * c + 9].item() for r in range(2) for c in range(4)]
    assert row == [10, 128, 1, 2, 20, 128, 3, 4]
    assert found[0, 1, 1 + 65 + 40] == 10
    assert sheet(images, torch.ones(1, 64, 64).bool(), images, gap=1).shape == (1, 131, 131)


def run(store: Path, out: Path, images: Path, *options: str) -> dict[str, Any]:
    command = ["restore", "--store", str(store), "--sources", "all", "--out", str(out), "--steps", "5"]
    assert main([*command, *options, str(images)]) == 0
    return json.loads((out / "credits.json").read_text())  # type: ignore[no-any-return]


def pictures(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("[0-9]*.png"))])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three grey pictures, 8x8."""
    folder = tmp_path_factory.mktemp("images")
    levels_of = np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for k, level in enumerate(levels_of):
        Image.fromarray(level).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize("strategy", ["posterior", "routed"])
def test_known_pixels_stay_and_batches_do_not_matter(strategy: str, store: Path, images: Path, tmp_path: Path) -> None:
    options = ("--mask", "left", "--n", "3", "--strategy", strategy)
    one = run(store, tmp_path / "one", images, *options, "--batch_size", "1")
    many = run(store, tmp_path / "many", images, *options, "--batch_size", "64")
    first, second, given = pictures(tmp_path / "one"), pictures(tmp_path / "many"), pictures(images)
    difference = np.abs(first - second)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-2
    assert np.array_equal(second[:, :, 4:], given.repeat(3, 0)[:, :, 4:])
    assert (second[0] != second[1]).any()
    assert [row["drawn"] for row in one["images"]] == [row["drawn"] for row in many["images"]]
    assert all((row["drawn"] is None) == (strategy == "posterior") for row in many["images"])


def test_what_the_mask_hides_changes_nothing(store: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for path in images.iterdir():
        changed = np.asarray(Image.open(path)).copy()
        changed[:, :4] = 255 - changed[:, :4]
        Image.fromarray(changed).save(tmp_path / "images" / path.name)
    run(store, tmp_path / "a", images, "--mask", "left")
    run(store, tmp_path / "b", tmp_path / "images", "--mask", "left")
    assert np.array_equal(pictures(tmp_path / "a"), pictures(tmp_path / "b"))


def test_the_report_says_what_was_done(store: Path, images: Path, tmp_path: Path) -> None:
    options = ("--sigma", "0.5", "--mask", "centre", "--n", "2", "--json", str(tmp_path / "r.json"))
    report = run(store, tmp_path / "out", images / "1.png", *options)
    assert json.loads((tmp_path / "r.json").read_text()) == report
    expected = {"sources": ["digit0", "digit1", "digit2"], "mask": "centre", "sigma": 0.5, "n": 2, "mean": False}
    expected |= {"seed": 0, "steps": 5, "sampler": "heun", "strategy": "posterior", "store": str(store)}
    assert {name: report[name] for name in expected} == expected
    assert {"backbone_sha256", "versions", "sigma_switch", "network_evaluations_per_image"} <= set(report)
    for k, row in enumerate(report["images"]):
        assert (row["file"], row["image"], row["draw"]) == (f"0000{k}.png", str(images / "1.png"), k)
        for weights in (row["given"], row["credits"], *(weights for _, weights in row["trajectory"])):
            assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
        assert len(row["trajectory"]) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.png",
        "00001.png",
        "credits.json",
        "grid.png",
    ]
    assert Image.open(tmp_path / "out" / "grid.png").size == (4 * 66 + 2, 66 + 2)


def test_black_and_white_masks_are_the_limits(store: Path, images: Path, tmp_path: Path) -> None:
    for name, level in (("black", 0), ("white", 255)):
        Image.new("L", (8, 8), level).save(tmp_path / f"{name}.png")
        run(store, tmp_path / name, images, "--mask", str(tmp_path / f"{name}.png"))
    assert np.array_equal(pictures(tmp_path / "black"), pictures(images))
    credits = json.loads((tmp_path / "white" / "credits.json").read_text())["images"][0]
    counts = {
        name: json.loads((store / "compartments" / name / "card.json").read_text())["n"] for name in credits["given"]
    }
    prior = {name: n / sum(counts.values()) for name, n in counts.items()}
    assert credits["given"] == pytest.approx(prior, abs=1e-4)


def test_the_mean_is_nearer_than_a_noised_image(store: Path, workplace: Path, tmp_path: Path) -> None:
    """Oracle: the clean image, a digit that was not trained on."""
    from datamodules import ShardDataModule

    clean = ShardDataModule(str(workplace / "shards"), image_size=8, channels=1).images("digit0", "heldout")[1][0, 0]
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 0.3 * 127.5
    (tmp_path / "noised").mkdir()
    noised = (clean + noise).round().clamp(0, 255).byte()
    Image.fromarray(noised.numpy()).save(tmp_path / "noised" / "0.png")
    run(store, tmp_path / "out", tmp_path / "noised", "--sigma", "0.3", "--mean")
    error = np.square(pictures(tmp_path / "out")[0] - clean.numpy()).mean()
    assert error < 0.8 * np.square(noised.numpy().astype(int) - clean.numpy()).mean()


def test_a_mask_with_transparent_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "mask.png")
    with pytest.raises(BadInput, match="is transparent in places: paint it black, and white where"):
        read_mask(str(tmp_path / "mask.png"), (1, 8, 8))
    Image.new("RGBA", (8, 8), (255, 255, 255, 255)).save(tmp_path / "mask.png")
    assert bool(read_mask(str(tmp_path / "mask.png"), (1, 8, 8)).all())


@pytest.mark.parametrize(
    ("image", "mask", "out", "json", "said"),
    [
        ("folder", "left", "./folder", None, f"--out ./folder holds folder, {OVER}"),
        ("folder/0.png", "left", "./folder", None, f"--out ./folder holds folder/0.png, {OVER}"),
        ("0.png", "folder/mask.png", "./folder", None, f"--out ./folder holds folder/mask.png, {OVER}"),
        ("folder", "left", "folder/out", "r.json", "--out folder/out lies in folder, whose images are restored"),
        ("folder", "left", "out", "folder/0.png", f"--json folder/0.png {LOST}"),
        ("0.png", "folder/mask.png", "out", "folder/mask.png", f"--json folder/mask.png {LOST}"),
    ],
)
def test_what_is_given_is_not_written_over(
    image: str,
    mask: str,
    out: str,
    json: str | None,
    said: str,
    store: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, "folder")
    for copy in ("folder/mask.png", "0.png"):
        shutil.copy(images / "0.png", copy)
    before = tree(tmp_path)
    command = ["restore", image, "--mask", mask, "--store", str(store), "--sources", "all", "--out", out]
    assert main([*command, *([] if json is None else ["--json", json])]) == 2
    assert said in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to restore: say what is unknown (--mask), or how noisy the images are (--sigma)"),
        (
            ("--mask", "lefft"),
            "--mask lefft: there is no such file; expected a PNG or JPEG file, or one of left, right",
        ),
        (("--mask", "text.png"), "text.png cannot be used: no readable PNG or JPEG image"),
        (("--sigma", "0"), "--sigma is 0; expected 0.002 to 80, in units of [-1, 1]"),
        (("--mask", "left", "--strategy", "assign"), "'assign' draws a source without a look at the given image"),
        (("--mask", "left", "--sources", "[digit7]"), "unknown source 'digit7'"),
        (("--mask", "left", "--n", "0"), "--n is 0; expected at least 1"),
        (("--mask", "left", "--n", "2", "--mean"), "--n is 2, but there is one mean: leave out --n or --mean"),
        (("--mask", "left", "--out", "text.png"), "--out text.png is no folder; name one, or a new one"),
        (("--mask", "left", "none.png"), "none.png cannot be used: there is no such file"),
        (("--mask", "left", "text.png"), "text.png cannot be used: no readable PNG or JPEG image"),
        (("--mask", "left", "empty"), "empty is a folder without .png, .jpg, .jpeg images"),
    ],
)
def test_bad_input(
    options: tuple[str, ...],
    said: str,
    store: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    command = ["restore", str(images / "0.png"), "--store", str(store), "--sources", "all", "--out", "out"]
    named = [option for option in options if option.endswith(("none.png", "empty")) or options[-2:] == ("left", option)]
    command[1:2] = named or command[1:2]
    assert main([*command, *(option for option in options if option not in named)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
