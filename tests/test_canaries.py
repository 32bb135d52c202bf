"""Canaries. Oracles: a plain Gaussian mechanism, binomial tails, a release without noise, the stated epsilon."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdm_lightning.audit_command import canary_report
from cdm_lightning.audit_table import canary_line
from cdm_lightning.canaries import LEAST_RELEASES, least_epsilon, scores
from cdm_lightning.cli import main
from cdm_lightning.gaussian_mechanism import epsilon_of, mu_of
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.intervals import exact_upper
from cdm_lightning.private_gaussians import PLACE_SHARE, STEPS_SHARE, Frame
from cdm_lightning.released_statistics import Noise
from cdm_lightning.secret_noise import SHORTEST, SecretNoise
from cdm_lightning.seeding import generator
from tests.conftest import Fit
from tests.test_privacy import card
from tests.test_private_gaussians import SHAPE, images

DELTA = 1e-4
SCALE = 6  # of the images, so that a corner of the cube of all images is far out
FLAT = (images(60) / SCALE).clamp(-1, 1)


@pytest.fixture(scope="module")
def frame() -> Frame:
    flat = images(600, seed=9) / SCALE
    return Frame.of(Gaussians.fit(flat.reshape(-1, *SHAPE), seed=0, rank=6, clusters=2))


def noises(name: str) -> Callable[[], Noise]:
    """Return what makes the noise of one release after another, the same in every run."""
    release = itertools.count()
    return lambda: SecretNoise(name.encode().ljust(SHORTEST), {"release": next(release)}).normal


def normal(count: int, mean: float, *seed: str | int) -> torch.Tensor:
    return torch.randn(count, generator=generator(*seed), dtype=torch.float64) + mean


@pytest.mark.parametrize(("count", "n", "risk"), [(0, 50, 0.025), (3, 40, 0.025), (39, 40, 0.1)])
def test_the_exact_end_leaves_the_risk_below(count: int, n: int, risk: float) -> None:
    upper = exact_upper(count, n, risk)
    tail = sum(math.comb(n, k) * upper**k * (1 - upper) ** (n - k) for k in range(count + 1))
    assert tail == pytest.approx(risk, rel=1e-6)
    assert exact_upper(n, n, risk) == 1.0


def test_the_score_is_the_likelihood_ratio_of_the_last_release(frame: Frame) -> None:
    """Its means are apart by the square of its deviation, which is the last release's mu: the canary goes as far as one
    image can."""
    mu = 1.5
    with_it, without = scores(FLAT, frame, mu, 2, 300, noises("ratio"))
    last = mu * math.sqrt(1 - PLACE_SHARE - STEPS_SHARE)
    for some in (with_it, without):
        assert float(some.std()) == pytest.approx(last, rel=0.2)
    assert float(with_it.mean() - without.mean()) == pytest.approx(last**2, abs=4 * last * math.sqrt(2 / 150))


def test_the_bound_stays_below_the_stated_epsilon(frame: Frame) -> None:
    """480 releases can show up to about 3.5: below that a bound that is too high would be seen."""
    for epsilon in (0.5, 2.0, 8.0):
        found = least_epsilon(*scores(FLAT, frame, mu_of(epsilon, DELTA), 2, 480, noises("bound")), DELTA)
        assert found < epsilon
        assert found > (0.5 if epsilon == 8.0 else -1)


def test_without_noise_the_bound_is_above_what_would_be_stated(frame: Frame) -> None:
    """The stated epsilon of 1 would be wrong, and canaries tell; at least as many releases as are asked for do."""
    silent = scores(FLAT, frame, mu_of(1.0, DELTA), 2, 200, lambda: lambda count: torch.zeros(count).double())
    assert least_epsilon(*silent, DELTA) > 1.0
    few = [some[: LEAST_RELEASES // 2] for some in silent]
    assert least_epsilon(few[0], few[1], DELTA) > 0.5


def test_of_a_plain_gaussian_mechanism_the_bound_is_true_and_near() -> None:
    mu = 2.0
    bounds = [least_epsilon(normal(4000, mu, "with", k), normal(4000, 0.0, "without", k), 1e-2) for k in range(3)]
    assert all(0.3 * epsilon_of(mu, 1e-2) < bound < epsilon_of(mu, 1e-2) for bound in bounds)


def test_what_cannot_be_told_has_no_bound() -> None:
    found = [least_epsilon(normal(100, 0.0, "a", k), normal(100, 0.0, "b", k), DELTA) for k in range(20)]
    assert sum(bound > 0 for bound in found) <= 4
    assert all(bound >= 0 for bound in found)


def test_the_report_is_of_the_closed_forms_share_and_an_excess_is_told(frame: Frame) -> None:
    own = card("a", 8.0, DELTA)
    own.settings["epsilon"] = 8.0
    pictures = torch.randint(0, 256, (30, 1, 3, 4), generator=generator("pictures"), dtype=torch.uint8)
    found = canary_report(own, pictures, frame, 40)
    assert (found["stated"], found["closed_form"]) == pytest.approx((8.0, 8.0))
    assert 0 <= found["epsilon_at_least"] < 8
    said = canary_line(found)
    assert "(95 %) for the closed form; stated is 8 at delta 0.0001 [40 releases of 30 images" in said
    assert "MORE than that" in canary_line(found | {"epsilon_at_least": 8.5})
    assert "5.4 of it for the closed form" in canary_line(found | {"closed_form": 5.4})


@pytest.mark.parametrize(
    ("count", "said"), [("10", "--canaries is 10; expected 0, or at least 40"), ("100", "none of --sources is private")]
)
def test_what_canaries_cannot_do_is_refused(
    count: str, said: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--store", str(store), "--sources", "all", "--canaries", count]) == 2
    assert said in capsys.readouterr().err


def test_audit_prints_the_bound_beside_the_stated_epsilon(
    store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    assert fit(copy, "[digit4]", "--privacy.epsilon", "8", "--privacy.delta", "1e-4") == 0
    quick = ("--extractor", "none", "--n", "6", "--steps", "2", "--draws", "1", "--strategies", "closed_form")
    out = tmp_path / "audit.json"
    sources = ("--sources", "digit0,digit4", "--canaries", "60", "--json", str(out))
    assert main(["audit", "--store", str(copy), *sources, *quick]) == 0
    (found,) = json.loads(out.read_text())["canaries"]
    assert (found["source"], found["releases"], found["stated"]) == ("digit4", 60, 8.0)
    assert 0 <= found["epsilon_at_least"] < 8
    assert canary_line(found) in capsys.readouterr().out
