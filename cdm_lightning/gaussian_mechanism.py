"""The Gaussian mechanism: how much noise a privacy of (epsilon, delta) takes, and what several releases cost together.

A release adds normal noise of deviation `sensitivity / mu` to every number, where `sensitivity` is the farthest (in
the Euclidean norm) that adding or removing one record can move all numbers together. Whatever was released, telling
whether the record was there is then exactly as hard as telling N(0, 1) from N(mu, 1) by one draw (Dong, Roth and Su
2019, arXiv 1905.02383, Theorem 2.7). So `mu` says all about a release, and (epsilon, delta) is one way to say `mu`.
"""

import math
from collections.abc import Iterable

from cdm_lightning.errors import BadInput

STEPS = 200  # of a bisection: more than the bits of a float


def delta_of(epsilon: float, mu: float) -> float:
    """Return the least delta with which noise of `mu` is (epsilon, delta)-differentially private.

    Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): exact (Balle and Wang 2018, arXiv 1805.06530, Theorem
    8).

    Args:
        epsilon: at least 0.
        mu: sensitivity over the deviation of the noise, at least 0.
    """
    if mu == 0:
        return 0.0
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    return max(0.0, _above(near) - math.exp(epsilon + _log_above(far)))


def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest mu that is (epsilon, delta)-differentially private (Balle and Wang 2018, Algorithm 1).

    Raises:
        BadInput: epsilon is not above 0, or delta not between 0 and 1.
    """
    check_budget(epsilon, delta)
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) <= delta:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(epsilon, middle) <= delta else (low, middle)
    return low


def epsilon_of(mu: float, delta: float) -> float:
    """Return the least epsilon with which noise of `mu` is (epsilon, delta)-differentially private; never too small.

    Raises:
        BadInput: delta is not between 0 and 1.
    """
    check_budget(1.0, delta)
    if delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_of(middle, mu) <= delta else (middle, high)
    return high


def composed(mus: Iterable[float]) -> float:
    """Return the mu of several releases about the same record together: exact (Dong, Roth and Su 2019, Corollary 3.3).

    A later release may depend on what an earlier one has said.
    """
    return math.sqrt(sum(mu * mu for mu in mus))


def check_budget(epsilon: float, delta: float) -> None:
    """Raise BadInput unless epsilon > 0 and 0 < delta < 1."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise BadInput(f"privacy.epsilon is {epsilon}; expected a number above 0, such as 8")
    if not 0 < delta < 1:
        raise BadInput(f"privacy.delta is {delta}; expected a number above 0 and below 1 / n, such as 1e-5")


def _above(x: float) -> float:
    """Return P(N(0, 1) > x)."""
    return math.erfc(x / math.sqrt(2)) / 2


def _log_above(x: float) -> float:
    """Return log P(N(0, 1) > x); below the smallest float by the first terms of the asymptotic series."""
    if x < 30:
        return math.log(_above(x))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))
