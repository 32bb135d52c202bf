"""What a coalition of sources is worth to an image: the log density that the model of these sources gives it, in nats.

Of every coalition S of sources with priors lambda_i there is a model, whose priors are renormalised in S, and of nobody
there is that of `public`. Its worth is, as a mean over noise n,

    v(S) = E[ log p_S(x_0 + floor n; floor) ],

directly from the closed forms (`DensityGame`), or from the denoising error of the model (`ErrorGame`): by the pointwise
I-MMSE relation (see `cdm_lightning.evidence.NetworkEvidence`) it is, up to a constant that is common to all coalitions,

    v(S) = - integral from floor to SIGMA_MAX of E|x_0 - D_S(x_0 + sigma n; sigma)|^2 sigma^-3 d sigma.

What costs is evaluated once per source and draw, and weighed anew for every coalition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import SIGMA_MAX
from cdm_lightning.seeding import generator

LEVELS = 12
TOGETHER = 128  # coalitions


def with_nobody(members: Tensor) -> Tensor:
    """Return coalitions [coalition, source + 1] in which `public`, the last one, stands for nobody."""
    return torch.cat([members, ~members.any(1, keepdim=True)], 1)


def shares_of(members: Tensor, logit: Tensor) -> Tensor:
    """Return softmax of `logit` [source + 1, ...] over the members of each coalition [coalition, source + 1, ...]."""
    chosen = members.reshape(*members.shape, *[1] * (logit.ndim - 1)).to(logit.device)
    return logit.expand(len(members), *logit.shape).masked_fill(~chosen, -math.inf).softmax(1)


@dataclass(frozen=True)
class DensityGame:
    """v(S) = log sum_{i in S} lambda_i^S p_i, lambda_i^S = lambda_i / sum_S lambda; v(nobody) = log p_public.

    Attributes:
        log_density: log p_i [source + 1, ...] of any images, in nats; the last one is `public`'s.
        log_prior: log lambda_i [source], up to a constant.
    """

    log_density: Tensor
    log_prior: Tensor

    def __call__(self, members: Tensor) -> Tensor:
        """Return v [coalition, ...] of coalitions [coalition, source]."""
        density = self.log_density.double()
        prior = torch.cat([self.log_prior, self.log_prior.new_zeros(1)]).to(density)
        values = []
        for some in with_nobody(members).split(TOGETHER):
            share = shares_of(some, prior).log()
            values.append((share.reshape(*share.shape, *[1] * (density.ndim - 1)) + density).logsumexp(1))
        return torch.cat(values)

    @classmethod
    def of(cls, compartments: Compartments, x_0: Tensor, sigma: float, draws: Sequence[Tensor]) -> "DensityGame":
        """Return the game of each image under each noise draw: values [coalition, draw, image].

        The log densities are those of the Gaussian mixtures as they are, without the temperature of the evidence.

        Args:
            compartments: the sources, on the device of the images.
            x_0: [image, channel, height, width] in [-1, 1].
            sigma: the noise level, above 0.
            draws: standard normal noise, shaped as an image, the same for all images.
        """
        forms = [*compartments.closed_forms.values(), compartments.public.closed_form.to(x_0.device)]
        level = x_0.new_full((len(x_0),), sigma)
        density = [torch.stack([form.log_density(x_0 + sigma * noise, level) for noise in draws]) for form in forms]
        return cls(torch.stack(density), _log_prior(compartments))


@dataclass(frozen=True)
class ErrorGame:
    """v(S) = - sum_level r_S, r_S the squared error of D_S = sum_{i in S} w_i^S D_i in nats.

    As the weights sum to one, r_S = w^S . R w^S with the products R of the residuals x_0 - D_i: no coalition needs a
    denoiser of its own.

    Attributes:
        product: R [level, source + 1, source + 1, ...], times d(log sigma) / sigma^2; the last source is `public`.
        logit: log lambda_i + log p_i(x; sigma) [level, source + 1, ...], which gives w_i^S = softmax in S.
    """

    product: Tensor
    logit: Tensor

    def __call__(self, members: Tensor) -> Tensor:
        """Return v [coalition, ...] of coalitions [coalition, source]."""
        values = []
        for some in with_nobody(members).split(TOGETHER):
            value = torch.zeros(len(some), *self.logit.shape[2:], dtype=torch.float64, device=self.logit.device)
            for product, logit in zip(self.product, self.logit, strict=True):
                weight = shares_of(some, logit.double())
                value -= (weight * torch.einsum("ij...,cj...->ci...", product.double(), weight)).sum(1)
            values.append(value)
        return torch.cat(values)

    @classmethod
    def of(
        cls,
        compartments: Compartments,
        public: Compartments,
        x_0: Tensor,
        floor: float,
        draws: int,
        seed: int,
        levels: int = LEVELS,
    ) -> "ErrorGame":
        """Return the game of each image under each draw of noise at all levels: values [coalition, draw, image].

        Args:
            compartments: the sources, on the device of the images.
            public: the backbone with `public` in their place.
            x_0: [image, channel, height, width] in [-1, 1].
            floor: the lowest level of the integral.
            draws: their number; the same draws for all images, all sources and all coalitions.
            seed: names them.
            levels: of the midpoint rule over log sigma.
        """
        width, products, logits = math.log(SIGMA_MAX / floor) / levels, [], []
        prior = _log_prior(compartments).to(x_0)
        for number in range(levels):
            sigma = floor * math.exp((number + 0.5) * width)
            parts = [
                cls._at(compartments, public, x_0, sigma, generator(seed, "coalitions", number, draw))
                for draw in range(draws)
            ]
            products.append(torch.stack([product for product, _ in parts], 2) * width / sigma**2)
            evidence = torch.stack([log_density for _, log_density in parts], 1)
            logits.append(torch.cat([evidence + prior[:, None, None], torch.zeros_like(evidence[:1])]))
        return cls(torch.stack(products), torch.stack(logits))

    @staticmethod
    def _at(
        compartments: Compartments, public: Compartments, x_0: Tensor, sigma: float, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the products of the residuals [source + 1, source + 1, image] and the evidence [source, image]."""
        x = x_0 + sigma * torch.randn(x_0.shape[1:], generator=noise).to(x_0)
        level = x_0.new_full((len(x_0),), sigma)
        denoised = [*_all_denoised(compartments, x, level), *_all_denoised(public, x, level)]
        residual = (x_0 - torch.stack(denoised)).flatten(2)
        evidence = [one.log_density(x, level) for one in compartments.evidence().values()]
        return torch.einsum("ibd,jbd->ijb", residual, residual), torch.stack(evidence)


def _all_denoised(compartments: Compartments, x: Tensor, sigma: Tensor) -> Tensor:
    """Return D_i(x; sigma) of all sources [source, image, ...], as rows of one batch."""
    n, source = len(compartments), torch.arange(len(compartments), device=x.device).repeat_interleave(len(x))
    rows: Tensor = compartments.rows(x.repeat(n, 1, 1, 1), sigma.repeat(n), source)
    return rows.reshape(n, *x.shape)


def _log_prior(compartments: Compartments) -> Tensor:
    return torch.tensor(list(compartments.prior().values()), dtype=torch.float64).log()
