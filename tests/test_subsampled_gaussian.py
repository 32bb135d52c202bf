"""How much noise DP-SGD takes. Oracles: one step in closed form, plain releases, Opacus, figures of dp-accounting."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from cdm_lightning import subsampled_gaussian
from cdm_lightning.errors import BadInput
from cdm_lightning.gaussian_mechanism import composed, delta_of, epsilon_of, mu_of
from cdm_lightning.subsampled_gaussian import (
    bounded,
    check_accountants,
    epsilon_after,
    multiplier_for,
    privacy_curve,
)

RATE, STEPS, DELTA, SLACK = 0.15, 20, 1e-4, 2e-6


def above(x: float) -> float:
    """Return P(N(0, 1) > x)."""
    return math.erfc(x / math.sqrt(2)) / 2


def delta_of_a_step(epsilon: float, rate: float, multiplier: float) -> float:
    """Return P(A) - e^epsilon Q(A) at its largest: P the mixture of N(1) and N(0), Q N(0), A where P/Q > e^epsilon."""
    edge = 0.5 + multiplier**2 * math.log((math.exp(epsilon) - 1 + rate) / rate)
    without, with_it = above(edge / multiplier), above((edge - 1) / multiplier)
    return (1 - rate) * without + rate * with_it - math.exp(epsilon) * without


@pytest.mark.parametrize("multiplier", [0.7, 2.0])
def test_the_curve_of_one_step_is_the_one_in_closed_form(multiplier: float) -> None:
    loss, delta = privacy_curve(RATE, multiplier, 1, 0.01, 1e-9)
    for epsilon in (0.1, 0.5, 1.0):
        upper, lower = (np.interp(epsilon + shift, loss, delta) for shift in (-0.01, 0.01))
        assert lower - 1e-9 <= delta_of_a_step(epsilon, RATE, multiplier) <= upper + 1e-9


def test_epsilon_is_the_one_of_opacus() -> None:
    """Step by step, as Opacus' engine would count, after a plain release; the bound by moments is above it."""
    mu, multiplier = 1.2, 1.1
    prv, rdp = PRVAccountant(), RDPAccountant()
    rdp.step(noise_multiplier=multiplier, sample_rate=RATE)
    for _ in range(STEPS):
        prv.step(noise_multiplier=multiplier, sample_rate=RATE)
        rdp.step(noise_multiplier=multiplier, sample_rate=RATE)
    own = epsilon_after([(multiplier, RATE, STEPS)], DELTA)
    assert own == prv.get_epsilon(delta=DELTA)
    assert own < rdp.get_epsilon(delta=DELTA)
    assert own < epsilon_after([(1 / mu, 1.0, 1), (multiplier, RATE, STEPS)], DELTA) < own + epsilon_of(mu, DELTA)


@pytest.mark.parametrize(
    ("mu", "multiplier", "rate", "steps", "delta", "epsilon"),
    [
        (0.0, 1.1, 0.15, 20, 1e-4, 3.5314134545),
        (1.2, 1.1, 0.15, 20, 1e-4, 6.0461576428),
        (0.0, 0.76, 0.0472, 100, 1e-5, 6.1539843237),
        (0.0, 1.0, 0.0128, 1000, 1e-5, 2.3906141719),
        (1.5, 0.9, 0.128, 300, 1e-5, 22.2251559861),
    ],
)
def test_epsilon_is_the_one_of_dp_accounting(
    mu: float, multiplier: float, rate: float, steps: int, delta: float, epsilon: float
) -> None:
    """Pinned: version 0.6.0, PLDAccountant, for adding and for removing an image, steps of 1e-4, `mu` released first.

    Ours is an upper bound that is at most the error of the numerical composition, 0.01, too large.
    """
    before = [(1 / mu, 1.0, 1)] if mu else []
    assert epsilon <= epsilon_after([*before, (multiplier, rate, steps)], delta) <= epsilon + 0.012


def test_releases_at_rate_1_are_plain_ones() -> None:
    mus = (0.8, 1.1)
    found = epsilon_after([(1 / mu, 1.0, 1) for mu in mus], DELTA)
    assert epsilon_of(composed(mus), DELTA) <= found <= epsilon_of(composed(mus), DELTA) + 0.03
    assert multiplier_for(1.0, 9, 1.5, SLACK) == pytest.approx(math.sqrt(9) / 1.5)


def test_a_contradiction_of_the_accountants_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RDPAccountant, "get_epsilon", lambda self, delta: 0.1)
    monkeypatch.setattr(PRVAccountant, "get_epsilon", lambda self, delta: 5.0)
    with pytest.raises(RuntimeError, match="PRV says epsilon 5.0, above the coarser 0.1"):
        epsilon_after([(1.0, RATE, STEPS)], DELTA)


@pytest.mark.parametrize(("rate", "steps", "epsilon"), [(RATE, STEPS, 8.0), (0.02, 300, 1.0)])
def test_the_noise_keeps_the_budget_and_is_hardly_more_than_needed(rate: float, steps: int, epsilon: float) -> None:
    """Half of mu^2 was released before; together the given epsilon holds, and most of it is used."""
    mu = mu_of(epsilon, DELTA - SLACK) * math.sqrt(0.5)
    multiplier = multiplier_for(rate, steps, mu, SLACK)
    assert bounded(rate, multiplier, steps, mu, SLACK)
    assert not bounded(rate, 0.97 * multiplier, steps, mu, SLACK)
    together = epsilon_after([(1 / mu, 1.0, 1), (multiplier, rate, steps)], DELTA)
    assert 0.85 * epsilon < together < epsilon + 0.02


def test_a_curve_above_the_bound_anywhere_is_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain releases as if they were steps: bounded by their own mu, not by a smaller one."""
    assert bounded(1.0, 2.0, 4, 1.05, SLACK)
    assert not bounded(1.0, 2.0, 4, 0.95, SLACK)
    flat = (np.linspace(-1, 9, 1000), np.full(1000, 10 * SLACK))
    monkeypatch.setattr(subsampled_gaussian, "privacy_curve", lambda *_: flat)
    assert not bounded(RATE, 1.0, STEPS, 1.0, SLACK), "far out it is above the slack"


def test_without_opacus_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_accountants()
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(BadInput, match=r"needs the package opacus: install it with pip install 'cdm-lightning\[dp\]'"):
        check_accountants()


STEP = 4.0 / 4000  # of the grid of `bounded`
Delta = Callable[[float], float]


def is_bounded(patch: pytest.MonkeyPatch, mu: float, slack: float, delta: Delta) -> bool:
    """Return what `bounded` says of an accountant that finds delta(epsilon), on a grid much finer than its errors."""
    loss, coarse = np.linspace(-0.5, 4.0, 450_001), np.linspace(-0.5, 4.0, 9001)
    curve = np.interp(loss, coarse, [delta(float(epsilon)) for epsilon in coarse])
    patch.setattr(subsampled_gaussian, "privacy_curve", lambda *_: (loss, curve))
    return subsampled_gaussian.bounded(0.1, 1.0, 10, mu, slack)


@pytest.mark.parametrize(("shift", "expected"), [(0.005, False), (0.01 + 0.4 * STEP, False), (0.01 + 1.5 * STEP, True)])
def test_the_error_of_the_composition_and_the_grid_are_on_the_safe_side(
    shift: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true delta(epsilon) may be what stands 0.01 before, and between two places of the grid that of the first."""
    slack = 1e-12

    def delta(epsilon: float) -> float:
        return slack + (1 - slack) * delta_of(max(epsilon + shift, 0.0), 1.0) if epsilon < 3.9 else 0.5 * slack

    assert is_bounded(monkeypatch, 1.0, slack, delta) == expected


@pytest.mark.parametrize(("below", "expected"), [(0.0005, False), (0.0015, True)])
def test_the_error_of_delta_is_added(below: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_bounded(monkeypatch, 1.0, 1e-2, lambda epsilon: 1e-2 * (1 - below)) == expected


@pytest.mark.parametrize(("part", "expected"), [(0.5, False), (1.2, True)])
def test_what_gives_all_away_does_not_count_twice(part: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slack = 0.3

    def delta(epsilon: float) -> float:
        return slack + (1 - part * slack) * delta_of(max(epsilon + 0.02, 0.0), 1.0) if epsilon < 1.5 else 0.5 * slack

    assert is_bounded(monkeypatch, 1.0, slack, delta) == expected
