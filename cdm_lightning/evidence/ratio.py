"""Evidence of a head that tells the source's noised images from `public`'s: `ratio`, a log density ratio."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cdm_lightning.interpolation import interpolate

STEPS = 100
OWN_SHARE = 4.0  # how much harder the ridge holds a level's departure from the weight that all levels share


def hat(sigma: Tensor, knots: Tensor) -> Tensor:
    """Return the weights [batch, knot] that interpolate tables, given at `knots`, at `sigma`: linear in log sigma."""
    return interpolate(sigma.log(), knots.to(sigma).log(), torch.eye(len(knots)).to(sigma)).T


@dataclass(frozen=True)
class NoisedFeatures:
    """Features of noised images: `value` [n, feature], and the noise level of each, `sigma` [n]."""

    value: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Whitening:
    """Centre and scale of features at each noise level, then their first principal directions; of `public` alone.

    Attributes:
        knots: [level], rising noise levels.
        mean: [level, feature].
        deviation: [level, feature].
        basis: [feature, kept], scaled to unit variance.
    """

    knots: Tensor
    mean: Tensor
    deviation: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, public: NoisedFeatures, knots: Tensor, kept: int) -> "Whitening":
        """Fit on features of noised `public`, whose noise levels must lie around every knot."""
        share = hat(public.sigma, knots)
        total = share.sum(0)[:, None]
        mean = share.T @ public.value / total
        centred = public.value - share @ mean
        deviation = (share.T @ centred.square() / total).sqrt().clamp_min(1e-6)
        scaled = centred / (share @ deviation)
        values, vectors = torch.linalg.eigh((scaled.T @ scaled / len(scaled)).double())
        kept = min(kept, len(values))
        basis = vectors.flip(1)[:, :kept] * values.flip(0)[:kept].clamp_min(1e-4).rsqrt()
        return cls(knots, mean, deviation, basis.to(public.value.dtype))

    def __call__(self, noised: NoisedFeatures) -> NoisedFeatures:
        """Return the features' coordinates [n, kept]."""
        share = hat(noised.sigma, self.knots)
        return NoisedFeatures((noised.value - share @ self.mean) / (share @ self.deviation) @ self.basis, noised.sigma)


@dataclass(frozen=True)
class RatioHead:
    """log p_i(x; sigma) - log p_public(x; sigma), linear in features, with weights interpolated in log sigma.

    Attributes:
        knots: [level], rising noise levels.
        weight: [level, feature].
        bias: [level].
    """

    knots: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, own: NoisedFeatures, public: NoisedFeatures, knots: Tensor, ridge: float) -> "RatioHead":
        """Fit by logistic regression (LBFGS from zero: a convex loss, no draw), both sides weighing the same.

        So the logit has no class ratio to be corrected for (Sugiyama et al. 2012, chapter 4). The weight of a level is
        one that all levels share, plus its own; the ridge holds both.

        Args:
            own: of the source's noised images.
            public: of noised `public`; the same for every source.
            knots: [level], rising.
            ridge: times the square of the weights is added to the loss, which is in nats per image.
        """
        value, sigma = torch.cat([own.value, public.value]), torch.cat([own.sigma, public.sigma])
        sign = torch.cat([torch.ones_like(own.sigma), -torch.ones_like(public.sigma)])
        mass = torch.cat([torch.full_like(side.sigma, 0.5 / len(side.sigma)) for side in (own, public)])
        levels = hat(sigma, knots)
        shared, departure, bias = (
            value.new_zeros(shape, requires_grad=True)
            for shape in ((value.shape[1],), (len(knots), value.shape[1]), (len(knots),))
        )
        optimizer = torch.optim.LBFGS([shared, departure, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            logit = value @ shared + (levels * (value @ departure.T)).sum(1) + levels @ bias
            penalty = ridge * (shared.square().sum() + OWN_SHARE * departure.square().sum())
            total = (mass * softplus(-sign * logit)).sum() + penalty
            total.backward()
            return total

        optimizer.step(loss)
        return cls(knots, (shared + departure).detach(), bias.detach())

    def logit(self, noised: NoisedFeatures) -> Tensor:
        """Return log p_i - log p_public [n]."""
        levels = hat(noised.sigma, self.knots)
        return (levels * (noised.value @ self.weight.to(levels).T)).sum(1) + levels @ self.bias.to(levels)


Features = Callable[[Tensor, Tensor], NoisedFeatures]


@dataclass(frozen=True)
class RatioEvidence:
    """The head's logit, an `Evidence`; `features` are of (x, sigma) alone, the same for all sources."""

    features: Features
    head: RatioHead

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) - log p_public(x; sigma) [batch]; class-blind."""
        return self.head.logit(self.features(x, sigma))
