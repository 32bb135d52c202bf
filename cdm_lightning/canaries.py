"""An empirical lower bound on the epsilon of a private closed form: can one tell whether a canary was in it?

A source is released again and again with fresh noise, every second time with one more image, the canary, which is as
far out as an image can be. Who knows all other images looks at the last release, which has most of the budget, and
guesses by what the canary would have added to it: this is the likelihood ratio. What (epsilon, delta) forbids is more
than

    found <= e^epsilon falsely + delta,    passed over rightly <= e^epsilon passed over wrongly + delta,

so shares of right and wrong guesses bound epsilon from below (Jagielski et al. 2020, arXiv 2006.07709). Threshold and
side are chosen on one half of the releases; the shares are those of the other half, by their exact intervals (Clopper
and Pearson 1934). The bound says nothing of a trained prompt, and few releases cannot show a large epsilon.
"""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from cdm_lightning.intervals import exact_upper
from cdm_lightning.private_gaussians import FARTHEST, Frame, Released, release
from cdm_lightning.released_statistics import Moments, Noise, release_moments
from cdm_lightning.secret_noise import SHORTEST, SecretNoise

MOST_IMAGES = 500  # of a source beside the canary; the guarantee holds for any, and fewer are quicker
LEAST_RELEASES = 40
RISK = 0.05  # that the bound is above the true epsilon
THRESHOLDS = 32
EXACT = 1e9  # a mu


def fresh_noise() -> Noise:
    """Return noise of a secret that nobody has seen, as a release has it."""
    return SecretNoise(secrets.token_bytes(SHORTEST), {}).normal


def scores(
    flat: Tensor, frame: Frame, mu: float, clusters: int, releases: int, noise: Callable[[], Noise] = fresh_noise
) -> tuple[Tensor, Tensor]:
    """Return how much releases look as if the canary was in them: those with it, and those without [releases / 2].

    Args:
        flat: images [n, dimension], float64, in [-1, 1].
        frame: of `public`.
        mu: of a release.
        clusters: of the closed form, at most.
        releases: how many in all.
        noise: makes the noise of one release.
    """
    canary = torch.where(frame.mean > 0, -1.0, 1.0).to(flat)
    worlds = torch.cat([flat, canary[None]]), flat
    found = [
        [_score(release(world, frame, mu, noise(), clusters), flat, canary, frame) for _ in range(releases // 2)]
        for world in worlds
    ]
    with_it, without = torch.tensor(found, dtype=torch.float64)
    return with_it, without


def _score(released: Released, flat: Tensor, canary: Tensor, frame: Frame) -> float:
    """Return the log likelihood ratio of the last release, up to a constant."""
    farthest = FARTHEST * float(frame.inside.sum().sqrt())
    others, own = (
        release_moments(some, released.cells, farthest, frame.kept, EXACT, lambda count: torch.zeros(count).double())
        for some in (flat, canary[None])
    )
    return sum(
        float((own_sum * (seen - known)).sum()) / deviation**2
        for own_sum, seen, known, deviation in zip(
            _sums(own), _sums(released.moments), _sums(others), _deviations(released.moments), strict=True
        )
    )


def _sums(moments: Moments) -> tuple[Tensor, ...]:
    return moments.count, moments.sum, moments.energy, moments.moment


def _deviations(moments: Moments) -> tuple[float, ...]:
    return moments.count_noise, moments.sum_noise, moments.energy_noise, moments.moment_noise


def least_epsilon(with_it: Tensor, without: Tensor, delta: float) -> float:
    """Return a lower bound on epsilon at `delta` from scores [n] with and without the canary; 95 % of such are true."""
    (chosen, judged), (chosen_others, judged_others) = (
        (some[: len(some) // 2], some[len(some) // 2 :]) for some in (with_it, without)
    )
    ordered = torch.cat([chosen, chosen_others]).sort().values
    places = torch.linspace(0, len(ordered) - 1, THRESHOLDS).long().unique()
    thresholds = [float(value) for value in ordered[places]]
    threshold, above = max(
        ((value, above) for value in thresholds for above in (True, False)),
        key=lambda guess: _bound(chosen, chosen_others, guess[0], guess[1], delta),
    )
    return max(0.0, _bound(judged, judged_others, threshold, above, delta))


def _bound(with_it: Tensor, without: Tensor, threshold: float, above: bool, delta: float) -> float:
    """Return log((right - delta) / wrong), both shares as bad as their intervals allow; minus infinity if none."""
    right, wrong = (with_it > threshold, without > threshold) if above else (without <= threshold, with_it <= threshold)
    least = 1 - exact_upper(int((~right).sum()), len(right), RISK / 2)
    most = exact_upper(int(wrong.sum()), len(wrong), RISK / 2)
    return math.log((least - delta) / most) if least > delta else -math.inf
