"""Guidance. Oracles: scores of analytic mixtures by automatic differentiation, and sampling without guidance."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdm_lightning.cli import main
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.guidance import GuidedDenoiser
from cdm_lightning.outputs import outputs_of
from cdm_lightning.sampling import karras_sigmas, sample
from cdm_lightning.strategy import Strategy
from tests.conftest import Fit

SHAPE = (2, 1, 1)
GRID = karras_sigmas(12, through=1.0)


def gaussian(mean: Sequence[float], variance: float, rest: float, angle: float) -> Gaussians:
    basis = torch.tensor([[[math.cos(angle)], [math.sin(angle)]]], dtype=torch.float64)
    numbers = (torch.tensor(some, dtype=torch.float64) for some in ([0.0], [mean], [[variance]], [rest]))
    log_share, centre, along, outside = numbers
    return Gaussians(log_share, centre, basis, along, outside, SHAPE)


# Two owners of nearly everything and of nearly nothing; of the class it is the other way round.
WHOLE = {"ann": gaussian([-1.2, 0.3], 0.5, 0.05, 0.6), "ben": gaussian([1.0, -0.5], 0.3, 0.1, 2.0)}
CAT = {"ann": gaussian([-0.4, 1.0], 0.1, 0.02, 0.0), "ben": gaussian([1.4, 0.8], 0.2, 0.04, 1.0)}
PRIOR_WHOLE, PRIOR_CAT = {"ann": 0.95, "ben": 0.05}, {"ann": 0.02, "ben": 0.98}


def composed(parts: dict[str, Gaussians], prior: dict[str, float], strategy: Strategy) -> ComposedDenoiser:
    evidence = {source: GaussianEvidence(part, Calibration.none(), 1.0) for source, part in parts.items()}
    return ComposedDenoiser({source: part.denoise for source, part in parts.items()}, evidence, prior, strategy)


def guided(guidance: float, strategy: Strategy = "posterior") -> GuidedDenoiser:
    return GuidedDenoiser(composed(CAT, PRIOR_CAT, strategy), composed(WHOLE, PRIOR_WHOLE, strategy), guidance)


def score(parts: dict[str, Gaussians], prior: dict[str, float], x: Tensor, sigma: Tensor) -> Tensor:
    """Return grad log sum_i prior_i N(x; mean_i, covariance_i + sigma^2 I), from full covariance matrices."""
    x = x.flatten(1).clone().requires_grad_()
    logs = []
    for source, part in parts.items():
        basis = part.basis[0]
        own = basis @ basis.T * (part.variance[0] - part.rest[0]) + part.rest[0] * torch.eye(2, dtype=x.dtype)
        noised = own + sigma.square()[:, None, None] * torch.eye(2, dtype=x.dtype)
        normal = torch.distributions.MultivariateNormal(part.mean[0].expand(len(x), -1), noised)
        logs.append(math.log(prior[source]) + normal.log_prob(x))
    density = torch.stack(logs).logsumexp(0)
    return torch.autograd.grad(density.sum(), x)[0].reshape(-1, *SHAPE)


def points(n: int, seed: int = 0) -> Tensor:
    return 1.5 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 5.0, 80.0])
def test_the_guided_score_is_that_of_the_mixtures(guidance: float, sigma: float) -> None:
    """(1 - g) score_u + g score_c: so each branch is weighed by its own prior and its own evidence."""
    x, level = points(20), torch.full((20,), sigma, dtype=torch.float64)
    expected = (1 - guidance) * score(WHOLE, PRIOR_WHOLE, x, level) + guidance * score(CAT, PRIOR_CAT, x, level)
    for denoise in (guided(guidance), guided(guidance).start(0, range(20))):
        torch.testing.assert_close((denoise(x, level) - x) / sigma**2, expected, rtol=1e-9, atol=1e-11)


def test_the_prior_of_the_other_branch_would_be_seen() -> None:
    """So the test above can fail."""
    x, level = points(20), torch.full((20,), 1.0, dtype=torch.float64)
    swapped = GuidedDenoiser(composed(CAT, PRIOR_WHOLE, "posterior"), composed(WHOLE, PRIOR_CAT, "posterior"), 3.0)
    assert float((swapped(x, level) - guided(3.0)(x, level)).abs().amax((1, 2, 3)).min()) > 0.1


def sampled(denoiser: ComposedDenoiser | GuidedDenoiser, indices: Sequence[int]) -> tuple[Tensor, list[int] | None]:
    trajectory = denoiser.start(3, list(indices))
    noise = points(40, seed=1)[list(indices)]
    images = sample(trajectory, noise, GRID, on_step=trajectory.on_step)
    return images, None if trajectory.drawn is None else trajectory.drawn.tolist()


@pytest.mark.parametrize("strategy", ["routed", "assign", "posterior", "uniform"])
def test_one_and_zero_are_the_branches_bit_for_bit(strategy: Strategy) -> None:
    for guidance, alone in ((1.0, composed(CAT, PRIOR_CAT, strategy)), (0.0, composed(WHOLE, PRIOR_WHOLE, strategy))):
        assert torch.equal(sampled(guided(guidance, strategy), range(40))[0], sampled(alone, range(40))[0])


@pytest.mark.parametrize("strategy", ["routed", "assign"])
def test_each_branch_draws_from_its_own_weights(strategy: Strategy) -> None:
    """Oracle: inversion of each branch's weights by the one uniform number of (seed, k), as the branch alone does."""
    trajectory = guided(3.0, strategy).start(5, range(400))
    x, level = torch.zeros(400, *SHAPE, dtype=torch.float64), torch.ones(400, dtype=torch.float64)
    trajectory.on_step(x, level)
    shares = []
    for branch, own in (
        (trajectory.conditional, composed(CAT, PRIOR_CAT, strategy)),
        (trajectory.unconditional, composed(WHOLE, PRIOR_WHOLE, strategy)),
    ):
        alone = own.start(5, range(400))
        alone.on_step(x, level)
        assert branch.drawn is not None
        assert alone.drawn is not None
        assert torch.equal(branch.drawn, alone.drawn)
        shares.append(float((branch.drawn == 1).double().mean()))
    assert shares[0] > shares[1] + 0.5
    assert trajectory.drawn is trajectory.conditional.drawn


@pytest.mark.parametrize("strategy", ["routed", "assign", "posterior"])
def test_guided_samples_do_not_depend_on_their_batch(strategy: Strategy) -> None:
    images, drawn = sampled(guided(2.5, strategy), range(12))
    alone = [sampled(guided(2.5, strategy), [k]) for k in range(12)]
    torch.testing.assert_close(torch.cat([image for image, _ in alone]), images, rtol=0, atol=1e-10)
    assert (drawn is None) == (strategy == "posterior")
    assert [source for _, some in alone for source in some or []] == (drawn or [])


def test_weights_are_those_of_the_class() -> None:
    x, level = points(5), torch.full((5,), 0.3, dtype=torch.float64)
    assert torch.equal(guided(4.0).weights(x, level), composed(CAT, PRIOR_CAT, "posterior").weights(x, level))
    assert guided(4.0).sources == ["ann", "ben"]


def test_branches_that_switch_at_different_levels_are_refused() -> None:
    other = ComposedDenoiser(guided(1).conditional.denoisers, guided(1).conditional.evidence, PRIOR_CAT, sigma_switch=2)
    with pytest.raises(ValueError, match="switches differ: 2.0, 1.0"):
        GuidedDenoiser(other, composed(WHOLE, PRIOR_WHOLE, "posterior"), 2.0)


def run(store: Path, out: Path, *options: str) -> tuple[np.ndarray, dict[str, Any]]:
    command = ["sample", "--store", str(store), "--sources", "all", "--n", "6", "--steps", "6", "--out", str(out)]
    assert main([*command, *options]) == 0
    images = [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("[0-9]*.png"))]
    return np.stack(images), json.loads((out / "credits.json").read_text())


@pytest.mark.parametrize("strategy", ["routed", "assign", "draft", "posterior"])
def test_sampling_by_command_line(strategy: str, parts: Path, tmp_path: Path) -> None:
    def at(name: str, *options: str) -> tuple[np.ndarray, dict[str, Any]]:
        return run(parts, tmp_path / name, "--strategy", strategy, *options)

    label = ("--label", "digit3")
    (plain, _), (classed, own) = at("plain"), at("class", *label)
    assert np.array_equal(at("zero", *label, "--guidance", "0")[0], plain)
    assert np.array_equal(at("one", *label, "--guidance", "1")[0], classed)
    strong, report = at("strong", *label, "--guidance", "3")
    single, alone = at("single", *label, "--guidance", "3", "--batch_size", "1")
    assert np.abs(strong - single).max() <= 1
    assert [image["drawn"] for image in report["images"]] == [image["drawn"] for image in alone["images"]]
    assert np.abs(strong - classed).max() > 20
    assert report["guidance"] == 3
    assert (
        report["network_evaluations_per_image"] == 2 * own["network_evaluations_per_image"] or strategy == "posterior"
    )
    assert all(sum(image["credits"].values()) == pytest.approx(1, abs=1e-5) for image in report["images"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--guidance", "2"), "--guidance 2 draws images towards a class: name it with --label"),
        (("--label", "digit3", "--guidance", "-1"), "--guidance is -1.0; expected a number of at least 0"),
        (("--label", "digit3", "--guidance", ".nan"), "--guidance is nan; expected a number of at least 0"),
        (("--label", "digit3", "--guidance", ".inf"), "--guidance is inf; expected a number of at least 0"),
        (("--label", "digit3", "--guidance", "2"), "there are none: fit with model.class_labels true"),
    ],
)
def test_bad_input(
    options: tuple[str, ...], said: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--store", str(store), "--sources", "all", "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("guidance", [0, 1, 2])
def test_who_draws_an_image_away_takes_part_in_it(guidance: int, workplace: Path, fit: Fit, tmp_path: Path) -> None:
    """Of two owners one has the class; guided, the other shapes the images too, so forgetting it finds them.

    With a guidance of 0 the class is ignored, so images follow both, and are credited to both.
    """
    store, out = tmp_path / "store", tmp_path / "out"
    assert fit(store, "[digit0, digit1]", "--model.class_labels", "true", "--model.backbone_steps", "2") == 0
    options = ("--label", "digit0", "--guidance", str(guidance), "--n", "2", "--steps", "2", "--annotate")
    assert main(["sample", "--store", str(store), "--sources", "all", "--out", str(out), *options]) == 0
    report = json.loads((out / "credits.json").read_text())
    both = ["digit0", "digit1"]
    assert report["sources"] == (["digit0"] if guidance == 1 else both)
    assert list(report["images"][0]["credits"]) == (both if guidance == 0 else ["digit0"])
    assert outputs_of(store / "runs", "digit1") == ([] if guidance == 1 else [out])
    if guidance == 0:
        assert main(["sample", "--store", str(store), "--sources", "all", "--out", str(out), *options[4:]]) == 0
        assert json.loads((out / "credits.json").read_text())["images"] == report["images"]


def test_a_class_that_nobody_has_is_told_under_guidance(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", "--store", str(parts), "--sources", "all", "--out", "unused"]
    assert main([*command, "--label", "digit33", "--guidance", "2"]) == 2
    assert "no chosen source has the class 'digit33'" in capsys.readouterr().err
