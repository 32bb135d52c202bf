"""Steps of DP-SGD: how much noise they take, and what they have cost, by the accountants of Opacus.

A step takes each image with probability `rate`, independently (Poisson), sums one vector of norm at most C of each, and
adds normal noise of deviation `multiplier` C to every number (Abadi et al. 2016, arXiv 1607.00133).

The rate comes from the released number of images, and the noise from the rate. So what the steps cost may not depend on
what was released before, or the costs could not be added up. Therefore the noise is as much as bounds them by one fixed
pair: the steps together are no easier to tell than one release of `mu` (see `gaussian_mechanism`) beside one that gives
all away with probability `slack`,

    delta(epsilon) <= slack + (1 - slack) delta_of(epsilon, mu)    for every epsilon >= 0,

where the left side is the upper bound of the numerical composition (PRV: Gopi et al. 2021, arXiv 2106.02848). By
Blackwell's theorem (Dong, Roth and Su 2019, arXiv 1905.02383) the steps then compose like that pair: the mu of all
releases as `gaussian_mechanism.composed` says, at delta minus every slack, whatever each release was chosen by. This
takes a few per cent more noise than the joint composition of fixed steps. Like other accountants, that of Opacus
follows the losses of removing an image, and adding one is taken to be no worse.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cdm_lightning.errors import BadInput
from cdm_lightning.gaussian_mechanism import delta_of

LEAST = 0.5  # noise multiplier: less is not tried
EPSILON_ERROR = 0.01  # of the numerical composition, at most
DELTA_ERROR = 1e-3  # of it, in slacks or deltas
GRID = 4000  # values of epsilon at which the bound is checked
WIDER = 1.2  # factor between the multipliers that are tried first
BISECTIONS = 5  # between the last two of them


def check_accountants() -> None:
    """Raise BadInput if Opacus, whose accountants say how much noise a trained prompt takes, is not installed."""
    try:
        import opacus.accountants  # noqa: F401
    except ImportError as error:
        raise BadInput(
            "a private prompt (privacy.epsilon with model.compartment tokens) needs the package opacus: install it "
            "with pip install 'cdm-lightning[dp]', or choose model.compartment none"
        ) from error


def multiplier_for(rate: float, steps: int, mu: float, slack: float) -> float:
    """Return the least noise multiplier, to 0.6 %, at which steps cost no more than `mu` and `slack` say.

    The search begins where a central limit theorem puts it (Bu et al. 2020, arXiv 1911.11607), which is too low.

    Args:
        rate: the probability of an image to be in a step, above 0 and at most 1.
        steps: number of steps, at least 1.
        mu: of the Gaussian release that bounds them.
        slack: the probability that is set aside, above 0.
    """
    if rate == 1:
        return max(LEAST, math.sqrt(steps) / mu)
    low = high = max(LEAST, 1 / math.sqrt(math.log1p(mu**2 / (rate**2 * steps))))
    while not bounded(rate, high, steps, mu, slack):
        low, high = high, WIDER * high
    for _ in range(BISECTIONS if high > low else 0):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bounded(rate, middle, steps, mu, slack) else (middle, high)
    return high


def bounded(rate: float, multiplier: float, steps: int, mu: float, slack: float) -> bool:
    """Return whether delta(epsilon) <= slack + (1 - slack) delta_of(epsilon, mu) at every epsilon; see the module.

    Between two neighbours on the grid the left side is taken at the smaller epsilon, the right side at the larger one.
    """
    epsilon_error = min(EPSILON_ERROR, mu / 20)
    loss, delta = privacy_curve(rate, multiplier, steps, epsilon_error, slack * DELTA_ERROR)
    epsilon = np.linspace(0.0, max(1.0, loss[-1]), GRID + 1)
    place = np.searchsorted(loss, epsilon - epsilon_error, side="right") - 1
    upper = np.where(place < 0, 1.0, delta[place.clip(0)]) + slack * DELTA_ERROR
    for least, following in zip(upper[:-1], epsilon[1:], strict=True):
        if least <= slack:
            return True  # it only falls
        if least > slack + (1 - slack) * delta_of(float(following), mu):
            return False
    return False


def privacy_curve(
    rate: float, multiplier: float, steps: int, epsilon_error: float, delta_error: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return rising values of epsilon [place] and delta at each of them [place], as Opacus' PRV accountant finds them.

    The true delta(epsilon) is at most what stands at epsilon - epsilon_error, plus delta_error.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(multiplier, rate, steps)]
    with _quiet():
        found = accountant._get_dprv(eps_error=epsilon_error, delta_error=delta_error)
        loss, mass = found.domain.ts, found.pmf
        above = np.flip(np.flip(mass).cumsum())
        scaled = np.flip(np.flip(mass * np.exp(-loss)).cumsum())
        return loss, above - np.exp(loss) * scaled


def epsilon_after(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Return the epsilon of (noise multiplier, rate, steps) one after another, by Opacus; rate 1 is a plain release.

    Raises:
        RuntimeError: the bound by moments (RDP: Mironov 2017, arXiv 1702.07476), a coarser one, contradicts it.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    accountants = PRVAccountant(), RDPAccountant()
    for accountant in accountants:
        accountant.history = list(history)
    with _quiet():
        numerical, by_moments = (float(accountant.get_epsilon(delta=delta)) for accountant in accountants)
    if numerical > by_moments + 2 * EPSILON_ERROR:
        raise RuntimeError(f"PRV says epsilon {numerical}, above the coarser {by_moments} of RDP, of steps {history}")
    return numerical


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep numpy's and Opacus' remarks on logarithms of 0 (at rate 1) and on orders of moments to themselves."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
