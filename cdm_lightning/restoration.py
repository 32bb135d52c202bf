"""Restoring a given image: unknown pixels are filled in and noised ones denoised, by samples of the conditional law.

The given image y is a second observation of x_0, beside the sampler's x. By Bayes' rule a pixel that has the noise
level sigma in x and tau in y is one observation z of the level s, 1 / s^2 = 1 / sigma^2 + 1 / tau^2: tau is 0 where a
pixel is exact, infinite where it is unknown. A sampler that follows E[x_0 | z] draws from the law of x_0 given y, and
that is composed as ever,

    E[x_0 | z] = sum_i w_i(z) E_i[x_0 | z],    w_i = softmax_i( log lambda_i + log p_i(z) ).

Closed forms give both for any levels; a network denoises images of one level only. See `ConditionalDenoiser`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cdm_lightning.composition import ComposedDenoiser, mixture_weights
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.masked_gaussians import MaskedGaussians
from cdm_lightning.sampling import OnStep, karras_sigmas, sample

START = 20.0  # times tau: the level from which on the sampler's x says next to nothing beside a complete image
FAR = 1e4  # a noise level at which x says nothing at all


@dataclass(frozen=True)
class Given:
    """What is known of some images.

    Attributes:
        image: y [batch, channel, height, width]; what stands in its unknown pixels is never used.
        known: bool [channel, height, width].
        tau: noise level of the known pixels; 0 if they are exact.
    """

    image: Tensor
    known: Tensor
    tau: float

    @property
    def complete(self) -> bool:
        """Whether every pixel is known, be it noised."""
        return bool(self.known.all())

    def joined(self, x: Tensor, sigma: float) -> "Joined":
        """Return what x, of level sigma, and the given image say together."""
        gain = sigma**2 / (sigma**2 + self.tau**2)
        z = torch.where(self.known, torch.lerp(x, self.image, gain), x)
        level_known = sigma * self.tau / math.hypot(sigma, self.tau) if self.known.any() else sigma
        return Joined(z, self.known, level_known, level_known if self.complete else sigma)


@dataclass(frozen=True)
class Joined:
    """An observation z of x_0 with two noise levels.

    Attributes:
        z: [batch, channel, height, width].
        known: bool [channel, height, width].
        level_known: of the known pixels.
        level: of the others, at least `level_known`; of all, if all are known.
    """

    z: Tensor
    known: Tensor
    level_known: float
    level: float

    def share(self, level: float) -> Tensor:
        """Return (s / level)^2 in the known pixels [channel, height, width], and 1 in the others."""
        ratio = self.level_known / level if level > 0 else 0.0
        return torch.where(self.known, self.z.new_tensor(ratio**2), self.z.new_tensor(1.0))

    def evened(self, noise: Tensor) -> Tensor:
        """Return z with so much noise added to the known pixels that all have the one `level`."""
        return torch.where(self.known, self.z + math.sqrt(self.level**2 - self.level_known**2) * noise, self.z)


class ConditionalDenoiser:
    """E[x_0 | x, given image] of a composed model, as a callable for a sampler.

    A network denoises images of one level. So the score of z is that of the closed form G plus what the network adds,
    taken at the evened image z', whose known pixels are noised to the level of the others:

        E[x_0 | z] = z + s^2 ( (G(z) - z) / s^2 + (D(z') - G(z')) / level^2 ).

    With a calibration that changes nothing it is exact where D is the closed form. If all pixels are known, z' is z and
    it is D(z), exact for any D. Gaussians are not trusted below the calibration's floor: there it is
    z + s^2 (D(z') - z') / level^2, so the network sees known pixels with noise, and above the floor G is given them
    with the floor as their level. Both are approximations.

    Args:
        composed: D_i and prior; its strategy is not used.
        forms: the closed form by source.
        calibration: of the evidence: at the least noised pixel's level it says temperature and floor.
        given: the images.
        noise: standard normal numbers, shaped as the images.
    """

    def __init__(
        self,
        composed: ComposedDenoiser,
        forms: Mapping[str, Gaussians],
        calibration: Calibration,
        given: Given,
        noise: Tensor,
    ) -> None:
        self.composed, self.calibration, self.given, self.noise = composed, calibration, given, noise
        self.forms = [MaskedGaussians(forms[source], given.known) for source in composed.sources]
        self.followed: Tensor | None = None

    def weights(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return w_i [source, batch], given x and the image, in the order of the composed model's sources."""
        return self._closed_form(self.given.joined(x, float(sigma[0])))[0]

    def weights_of_given(self) -> Tensor:
        """Return w_i [source, batch] given the image alone."""
        return self.weights(torch.zeros_like(self.given.image), self.noise.new_full((len(self.noise),), FAR))

    def follow(self, source: Tensor) -> None:
        """Hold one source per image, of the indices `source` [batch], instead of mixing all."""
        self.followed = one_hot(source, len(self.forms)).T.to(self.noise)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x, given image], shaped as x, for sigma [batch], one level for all."""
        joined = self.given.joined(x, float(sigma[0]))
        if joined.level == 0:
            return joined.z
        even, level = joined.evened(self.noise), torch.full_like(sigma, joined.level)
        left = joined.share(joined.level)
        if self.given.complete or joined.level < self.calibration.floor:
            weights = self._closed_form(joined)[0] if self.followed is None else self.followed
            return joined.z + left * (self.composed.mixed(even, level, weights) - even)
        weights, drafts = self._closed_form(joined)
        weights = weights if self.followed is None else self.followed
        even_draft = _mixed(weights, [form.gaussians.denoise(even, level) for form in self.forms])
        by_closed_form = joined.share(self._trusted(joined)) * (_mixed(weights, drafts) - joined.z)
        by_network = left * (self.composed.mixed(even, level, weights) - even_draft)
        return joined.z + by_closed_form + by_network

    def mean(self) -> Tensor:
        """Return E[x_0 | given image]: D(y; tau) if all pixels are known, else the closed form's."""
        joined = self.given.joined(torch.zeros_like(self.given.image), FAR)
        weights, drafts = self._closed_form(joined)
        if not self.given.complete:
            return joined.z + joined.share(self._trusted(joined)) * (_mixed(weights, drafts) - joined.z)
        level = joined.z.new_full((len(joined.z),), joined.level)
        return self.composed.mixed(joined.z, level, weights) if joined.level > 0 else joined.z

    def _closed_form(self, joined: Joined) -> tuple[Tensor, list[Tensor]]:
        """Return w_i [source, batch] and the closed forms G_i(z)."""
        least, level_known = torch.tensor([joined.level_known]), self._trusted(joined)
        temperature = float(self.calibration.temperature_at(least)) if self._below(joined) else 1.0
        parts = [form.posterior(joined.z, level_known, max(joined.level, level_known)) for form in self.forms]
        evidence = torch.stack([log_density for log_density, _ in parts]) / temperature
        weights = mixture_weights(evidence, self.composed.prior.log().to(evidence))
        return weights, [denoised for _, denoised in parts]

    def _trusted(self, joined: Joined) -> float:
        """Return the level at which the closed form is given the known pixels."""
        return max(joined.level_known, self.calibration.floor) if self._below(joined) else joined.level_known

    def _below(self, joined: Joined) -> bool:
        return joined.level_known < self.composed.sigma_switch


def _mixed(weights: Tensor, images: list[Tensor]) -> Tensor:
    """Return sum_i w_i image_i for weights [source, batch]."""
    return torch.einsum("sb,sb...->b...", weights.to(images[0]), torch.stack(images))


def levels(given: Given, steps: int, through: float) -> Tensor:
    """Return the noise levels of `steps` sampler steps; a complete image needs no level far above its own."""
    first = min(SIGMA_MAX, START * given.tau) if given.complete and given.tau > 0 else SIGMA_MAX
    return karras_sigmas(steps, SIGMA_MIN, first, through=through)


def restore(denoise: ConditionalDenoiser, noise: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Return one draw of x_0 given each image, shaped as it, not clipped; exact pixels are as they were given.

    Args:
        denoise: knows the images.
        noise: standard normal numbers, shaped as the images.
        sigmas: falling noise levels, see `levels`.
        on_step: see `cdm_lightning.sampling.sample`.
    """
    first = float(sigmas[0])
    mean = denoise(noise * first, noise.new_full((len(noise),), first))
    x_0 = sample(denoise, noise + mean / first, sigmas, on_step=on_step)  # starts around the mean, not around 0
    exact = denoise.given.known & (denoise.given.tau == 0)
    return torch.where(exact, denoise.given.image, x_0)
