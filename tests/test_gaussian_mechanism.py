"""The Gaussian mechanism against integrals of the two densities, drawn noise, and known limits."""

import math

import numpy as np
import pytest
from scipy.special import log_ndtr

from cdm_lightning.errors import BadInput
from cdm_lightning.gaussian_mechanism import _log_above, composed, delta_of, epsilon_of, mu_of

BUDGETS = [(0.1, 1e-5), (1.0, 1e-5), (1.0, 1e-9), (5.0, 1e-3), (8.0, 1e-5), (10.0, 1e-6), (40.0, 1e-6)]


def integrated_delta(epsilon: float, mu: float) -> float:
    """Return the integral of max(0, p - e^epsilon q) for p = N(mu, 1), q = N(0, 1): the definition of delta."""
    x = np.linspace(-12, mu + 12, 2_000_001)
    p, q = (np.exp(-((x - centre) ** 2) / 2) / math.sqrt(2 * math.pi) for centre in (mu, 0.0))
    return float(np.trapezoid(np.maximum(0.0, p - math.exp(epsilon) * q), x))


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_the_noise_of_a_budget_has_this_budget_by_integration(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert integrated_delta(epsilon, mu) == pytest.approx(delta, rel=1e-3)
    assert delta_of(epsilon, mu) <= delta < delta_of(epsilon, mu * (1 + 1e-6))


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_epsilon_is_the_inverse_and_never_too_small(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-9)
    assert delta_of(epsilon_of(mu, delta), mu) <= delta


def test_both_directions_of_neighbours_are_covered() -> None:
    """Removing a record is adding one seen from the other side: the privacy profile of mu is symmetric."""
    x = np.linspace(-14, 14, 2_000_001)
    p, q = np.exp(-((x - 1.5) ** 2) / 2), np.exp(-(x**2) / 2)
    there, back = (
        float(np.trapezoid(np.maximum(0, a - math.exp(2.0) * b), x)) / math.sqrt(2 * math.pi)
        for a, b in ((p, q), (q, p))
    )
    assert there == pytest.approx(back, rel=1e-9)
    assert delta_of(2.0, 1.5) == pytest.approx(there, rel=1e-6)


def test_analytic_noise_is_less_than_the_classical_bound() -> None:
    """Dwork and Roth 2014, Theorem A.1 (valid up to epsilon 1): deviation sqrt(2 log(1.25 / delta)) / epsilon."""
    for epsilon in (0.1, 0.5, 1.0):
        classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
        assert 0.6 * classical < 1 / mu_of(epsilon, 1e-5) < classical


def test_more_budget_takes_less_noise() -> None:
    mus = [mu_of(epsilon, 1e-5) for epsilon in (0.5, 1, 2, 4, 8, 16)]
    assert mus == sorted(mus)
    assert mu_of(1.0, 1e-4) > mu_of(1.0, 1e-5)


def test_two_releases_are_one_of_both_numbers() -> None:
    """Two numbers with deviation 1 each, moved by 0.6 and 0.8, are a vector that moved by 1."""
    assert composed([0.6, 0.8]) == pytest.approx(1.0)
    x = np.linspace(-9, 10, 2001)
    a, b = np.meshgrid(x, x)
    q = np.exp(-(a**2 + b**2) / 2) / (2 * math.pi)
    p = np.exp(-((a - 0.6) ** 2 + (b - 0.8) ** 2) / 2) / (2 * math.pi)
    both = float(np.maximum(0, p - math.e * q).sum() * (x[1] - x[0]) ** 2)
    assert delta_of(1.0, composed([0.6, 0.8])) == pytest.approx(both, rel=1e-3)


def test_two_equal_releases_cost_less_than_twice_the_epsilon() -> None:
    mu = mu_of(1.0, 1e-5)
    assert 1.0 < epsilon_of(composed([mu, mu]), 1e-5) < 2.0


@pytest.mark.parametrize(
    ("epsilon", "delta", "deviation", "twice"),
    [
        (1.0, 1e-5, 3.7306316348159374, 1.4651699816),
        (8.0, 1e-5, 0.6002290721989517, 12.2564578465),
        (10.0, 1e-6, 0.5410868318184269, 15.2720505704),
    ],
)
def test_figures_are_those_of_dp_accounting(epsilon: float, delta: float, deviation: float, twice: float) -> None:
    """Pinned: its `get_sigma_gaussian`, and the epsilon of two releases by its privacy loss distributions."""
    mu = mu_of(epsilon, delta)
    assert 1 / mu == pytest.approx(deviation, rel=1e-9)
    assert epsilon_of(composed([mu, mu]), delta) == pytest.approx(twice, rel=1e-6)


def test_no_release_costs_nothing() -> None:
    assert composed([]) == 0.0
    assert epsilon_of(0.0, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_what_is_no_budget_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(BadInput, match=r"privacy\.(epsilon|delta) is"):
        mu_of(epsilon, delta)


def test_the_tail_is_scipys() -> None:
    for x in (-3.0, 5.0, 29.9, 30.0, 35.0, 60.0, 1000.0):
        assert _log_above(x) == pytest.approx(float(log_ndtr(-x)), rel=0, abs=1e-5)
