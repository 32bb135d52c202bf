"""Evidence of the network's denoising error: `network`, a bound of the kind of an ELBO, from common noise draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.denoiser import SIGMA_MAX, per_image, score
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.seeding import generator


@dataclass(frozen=True)
class NetworkEvidence:
    """The closed form's log density, plus what the network gains on it in denoising error below `top`.

    Let x have the density p at level sigma, and let more noise take it to z = x + sqrt(v) n at level s, v = s^2 -
    sigma^2. The best estimate of x from z is z + v grad log p(z; s); with a denoiser D that is x_D(z) = z + (v / s^2)
    (D(z; s) - z), as grad log p = (D - z) / s^2. The heat equation d/dv log p = (Laplacian log p + |grad log p|^2) / 2
    and Stein's lemma E[n . f(z)] = sqrt(v) E[div f(z)] give, for every x (the pointwise I-MMSE relation: Kong et al.
    2023, arXiv 2302.03792; for classes: Li et al. 2023, arXiv 2303.16203),

        d/dv E[log p(z; s)] = E|x - x_D(z)|^2 / (2 v^2) - dimension / (2 v),

        log p(x; sigma) = E[log p(z; top)] - 1/2 integral E|x - x_D(z)|^2 d(-1/v) + terms that no source changes,

    with 1/v, the signal-to-noise ratio of z as a measurement of x, in the place of 1/s^2: the same for a clean x. At
    and above `top` the source is its closed form G, for which all of this holds too, and whose log density is known.
    Subtracting its relation closes the integral at the top and takes most noise out of it:

        log p(x; sigma) = log g(x; sigma) + 1/2 integral E( |x - x_G(z)|^2 - |x - x_D(z)|^2 ) / v^2 dv.

    The integral is over log s, by the midpoint rule; the expectation by pairs of draws n and -n, in which what is odd
    in n, of order 1 / sqrt(v), cancels. All sources and all images of a generator's name share the draws. For an ideal
    D the error is that of these two sums; a D that is the gradient of no log density has no exact value to err from.

    Attributes:
        denoise: D(z [batch, ...], s [batch]) of the source below `top`; at and above it, it is not asked.
        closed_form: G.
        switch: the noise level of the switch; inf where there is none.
        levels: of the midpoint rule.
        pairs: of draws at each level.
        seed: names the draws.
    """

    denoise: Callable[[Tensor, Tensor], Tensor]
    closed_form: Gaussians
    switch: float
    levels: int = 8
    pairs: int = 1
    seed: int = 0

    @property
    def top(self) -> float:
        """The noise level from which on no network is asked: at most the highest that networks are trained on."""
        return min(self.switch, SIGMA_MAX)

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) [batch], by 2 * levels * pairs network evaluations per image below `top`."""
        density, below = self.closed_form.log_density(x, sigma), sigma < self.top
        if not below.any():
            return density
        return density.index_put((below,), self._gain(x[below], sigma[below]), accumulate=True)

    def _gain(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return half the integral [batch] of what the network's error is smaller, for sigma [batch] below `top`."""
        width = (math.log(self.top) - sigma.log()) / self.levels
        gain = torch.zeros_like(sigma)
        for level in range(self.levels):
            s = sigma * ((level + 0.5) * width).exp()
            gain = gain + width * s.square() * self._less_error(x, sigma, s, level)
        return gain

    def _less_error(self, x: Tensor, sigma: Tensor, s: Tensor, level: int) -> Tensor:
        """Return E( |x - x_G|^2 - |x - x_D|^2 ) / v^2 [batch] at level `s` [batch]; dv = 2 s^2 d(log s)."""
        names = [generator(self.seed, "elbo", level, pair) for pair in range(self.pairs)]
        draws = torch.stack([torch.randn(x.shape[1:], generator=name) for name in names]).to(x)
        n = torch.cat([draws, -draws]).repeat_interleave(len(x), dim=0)
        clean, low, high = (part.repeat(2 * self.pairs, *[1] * (part.ndim - 1)) for part in (x, sigma, s))
        spread = per_image((high.square() - low.square()).sqrt(), clean)
        z = clean + spread * n
        by_network, by_form = (
            score(z, denoised, high) for denoised in (self.denoise(z, high), self.closed_form.denoise(z, high))
        )
        less = (by_form - by_network) * (by_form + by_network + 2 * n / spread)
        return less.flatten(1).sum(1).reshape(2 * self.pairs, -1).mean(0)
