"""What is fitted on `public` beside the network. Oracles: laws that want one prior or another, errors by hand."""

from collections.abc import Sequence

import pytest
import torch

from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.pseudo_sources import PseudoSources
from cdm_lightning.public import _nats, fit_strength


def sources_of(means: Sequence[float], spreads: Sequence[float], n: int = 200) -> tuple[PseudoSources, list[Gaussians]]:
    """Return groups of n images around means, and the closed form of the others for each."""
    g = torch.Generator().manual_seed(3)
    x = torch.cat([m + s * torch.randn(n, 1, 2, 3, generator=g) for m, s in zip(means, spreads, strict=True)])
    keys = [f"f{k}-{i}" for k in range(len(means)) for i in range(n)]
    labels = [str(k) for k in range(len(means)) for _ in range(n)]
    pseudo = PseudoSources.cut(x, keys, labels, 0)
    return pseudo, [Gaussians.fit(pseudo.without_group(k), seed=0, rank=3, clusters=1) for k in pseudo.groups()]


def test_sources_that_are_as_the_prior_says_want_a_strong_one_and_others_a_weak_one() -> None:
    assert fit_strength(*sources_of([0.0, 0.0, 0.0], [0.3, 0.3, 0.3]), 0, 3) == Strength(10.0, 300.0)
    assert fit_strength(*sources_of([-3.0, 0.0, 3.0], [0.3, 0.05, 0.3]), 0, 3).mean == 0.1
    assert fit_strength(*sources_of([0.0, 0.0, 0.0], [0.1, 1.0, 0.1]), 0, 3).covariance < 30.0


def test_nats_are_errors_over_sigma_squared() -> None:
    """Oracle: a draft that is a wide Gaussian is the identity, so its error is sigma^2 and it loses one a level."""
    pseudo, priors = sources_of([0.0, 0.0], [1e3, 1e3])
    sizes = [size for size in pseudo.sizes() if size <= 500]
    assert _nats(pseudo, priors, Strength(), 0, 3) == pytest.approx(2 * len(sizes) * 5, rel=0.15)
