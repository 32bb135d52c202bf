"""Credit: the posterior weights of an image's possible sources, under the Gaussian mixtures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.images import from_uint8, spread
from cdm_lightning.seeding import generator, normal

DRAWS = 16
BINS = 15
ROUNDING = 1e-6  # of a cross-entropy, in nats
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
IMAGES, IMAGES_OF_ALL = 64, 120
IMAGES_PER_LEVEL = 12


def credits_of(composed: ComposedDenoiser, x_0: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Return the mean of w(x_0 + sigma * noise; sigma) over 16 fixed noise draws: [source, batch], columns sum to 1.

    Args:
        composed: gives the weights.
        x_0: [batch, channel, height, width] in [-1, 1].
        sigma: the noise level; at the floor of the calibration it says most.
        seed: of the draws, which are the same for every image.
    """
    return credits_by_draw(composed, x_0, sigma, credit_noise(x_0, DRAWS, seed)).mean(0)


def credit_noise(x_0: Tensor, draws: int, seed: int) -> list[Tensor]:
    """Return the noise draws of credits, each shaped as an image of `x_0`; the first ones do not depend on how many."""
    return [torch.randn(x_0.shape[1:], generator=generator(seed, "credits", draw)).to(x_0) for draw in range(draws)]


def credits_by_draw(composed: ComposedDenoiser, x_0: Tensor, sigma: float, draws: Sequence[Tensor]) -> Tensor:
    """Return w(x_0 + sigma * noise; sigma) [draw, source, batch] for each noise of `draws`, shaped as an image."""
    level = x_0.new_full((len(x_0),), sigma)
    return torch.stack([composed.weights(x_0 + sigma * noise, level) for noise in draws])


def weights_at(composed: ComposedDenoiser, x_0: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Return w(x_0 + sigma * noise; sigma) [source, batch] for one noise draw per image."""
    noise = normal(x_0.shape, generator(seed, "weights", str(sigma)), x_0.device)
    return composed.weights(x_0 + sigma * noise.to(x_0), x_0.new_full((len(x_0),), sigma))


def attribution_matrix(weights: Sequence[Tensor]) -> Tensor:
    """Return the mean weight [true source, credited source] of `weights`, one [source, batch] per true source."""
    return torch.stack([weight.mean(1) for weight in weights])


def cross_entropy(weights: Sequence[Tensor]) -> float:
    """Return -log of the true source's weight in nats, averaged over all images of `weights` [source, batch] each."""
    losses = [-weight[true].clamp_min(1e-30).log() for true, weight in enumerate(weights)]
    return float(torch.cat(losses).mean())


def accuracy(weights: Sequence[Tensor]) -> float:
    """Return the share of images whose true source has the largest weight."""
    right = [weight.argmax(0) == true for true, weight in enumerate(weights)]
    return float(torch.cat(right).float().mean())


def accuracy_by_source(weights: Sequence[Tensor]) -> list[float]:
    """Return `accuracy` on the images of each true source alone."""
    return [float((weight.argmax(0) == true).float().mean()) for true, weight in enumerate(weights)]


def mean_credit(weights: Sequence[Tensor]) -> float:
    """Return the weight of the true source, averaged over all images."""
    return float(torch.cat([weight[true] for true, weight in enumerate(weights)]).mean())


def calibration_error(weights: Sequence[Tensor]) -> float:
    """Return the expected calibration error of the largest weight, over 15 equal bins (Guo et al. 2017)."""
    confidence, right = largest_weights(weights)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins_of(confidence).cpu(), (right - confidence).cpu())
    return float(gaps.abs().sum() / len(confidence))


def knowing_nothing(prior: Tensor, images: Sequence[int]) -> float:
    """Return the cross-entropy in nats of weights that do not look at an image: equal ones, or the prior if it is less.

    Args:
        prior: lambda [source].
        images: how many of each true source are credited.
    """
    count = torch.tensor(images, dtype=torch.float64)
    by_prior = float(-(count @ prior.double().log().cpu()) / count.sum())
    return min(math.log(len(images)), by_prior)


def is_informative(loss: float, nothing: float) -> bool:
    """Return whether a held-out cross-entropy is below that of knowing nothing, by more than rounding."""
    return loss < nothing - ROUNDING


@dataclass(frozen=True)
class Bin:
    """Images whose largest weights are alike: their number, the mean of these weights, and how often they are right."""

    images: int
    confidence: float
    accuracy: float


def reliability(weights: Sequence[Tensor]) -> list[Bin]:
    """Return the bins that `calibration_error` is of, without those that are empty, least weight first."""
    confidence, right = largest_weights(weights)
    place = bins_of(confidence)
    found = [(confidence[place == k], right[place == k]) for k in place.unique().tolist()]
    return [Bin(len(sure), float(sure.mean()), float(true.mean())) for sure, true in found]


def largest_weights(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest weight of every image [image], and 1 where it is the true source's, else 0 [image]."""
    confidence = torch.cat([weight.amax(0) for weight in weights]).double()
    return confidence, torch.cat([weight.argmax(0) == true for true, weight in enumerate(weights)]).double()


def bins_of(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence in [0, 1]."""
    return (confidence * BINS).long().clamp(max=BINS - 1)


@dataclass(frozen=True)
class Judgement:
    """How well weights name the true source of images.

    Attributes:
        matrix: mean weight [true source, credited source].
        accuracy: share of images whose true source has the largest weight.
        accuracy_by_source: the same on the images of each true source.
        mean_credit: weight of the true source, on average.
        cross_entropy: of the true source, in nats.
        knowing_nothing: the cross-entropy of weights that do not look at the image.
        calibration_error: of the largest weight.
        bins: what the calibration error is made of.
        images: of each true source.
        informative: whether the weights say more than knowing nothing of the image would.
    """

    matrix: Tensor
    accuracy: float
    accuracy_by_source: list[float]
    mean_credit: float
    cross_entropy: float
    knowing_nothing: float
    calibration_error: float
    bins: list[Bin]
    images: list[int]
    informative: bool

    def scalars(self) -> dict[str, float]:
        """Return the numbers by name."""
        names = ("accuracy", "mean_credit", "cross_entropy", "knowing_nothing", "calibration_error")
        return {name: getattr(self, name) for name in names} | {"informative": float(self.informative)}


def judge(weights: Sequence[Tensor], prior: Tensor) -> Judgement:
    """Judge `weights`, one [source, batch] per true source, in the order of the sources, as `prior` [source] is."""
    loss, images = cross_entropy(weights), [weight.shape[1] for weight in weights]
    nothing = knowing_nothing(prior, images)
    return Judgement(
        attribution_matrix(weights),
        accuracy(weights),
        accuracy_by_source(weights),
        mean_credit(weights),
        loss,
        nothing,
        calibration_error(weights),
        reliability(weights),
        images,
        is_informative(loss, nothing),
    )


@dataclass(frozen=True)
class HeldOutCredits:
    """How well held-out images are credited to their sources.

    Attributes:
        credits: by their credits.
        by_sigma: by their weights at each of `SIGMAS`.
    """

    credits: Judgement
    by_sigma: list[Judgement]


def images_credited(sources: int) -> int:
    """Return how many held-out images of each source are credited in a model of so many sources."""
    return min(max(IMAGES_OF_ALL // sources, IMAGES_PER_LEVEL), IMAGES)


def heldout_credits(composed: ComposedDenoiser, floor: float, held_out: Mapping[str, Tensor]) -> HeldOutCredits | None:
    """Return how held-out images of every source are credited, or None if a source of the model has none.

    Args:
        composed: gives the weights.
        floor: the noise level of the credits.
        held_out: uint8 [n, channel, height, width] by source; those of other sources are not looked at.
    """
    if not all(len(held_out.get(source, ())) for source in composed.sources):
        return None
    most = images_credited(len(composed.sources))
    images = [from_uint8(spread(held_out[source], most)) for source in composed.sources]
    few = [spread(x_0, IMAGES_PER_LEVEL) for x_0 in images]
    with torch.inference_mode():
        credits = _by_source(credits_of(composed, torch.cat(images), floor), images)
        by_sigma = [_by_source(weights_at(composed, torch.cat(few), sigma), few) for sigma in SIGMAS]
    return HeldOutCredits(judge(credits, composed.prior), [judge(weights, composed.prior) for weights in by_sigma])


def _by_source(weights: Tensor, images: Sequence[Tensor]) -> Sequence[Tensor]:
    """Cut weights [source, batch] into those of the images of each true source."""
    parts: tuple[Tensor, ...] = weights.split([len(x_0) for x_0 in images], dim=1)
    return parts
