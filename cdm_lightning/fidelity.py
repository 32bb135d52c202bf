"""Fidelity: how close the samples of a composed denoiser are to held-out images, as an extractor sees both."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.generation import Settings, batched, sample_batch
from cdm_lightning.images import to_uint8
from cdm_lightning.metrics import scores
from cdm_lightning.reference import Reference, joined


def fidelity(
    composed: ComposedDenoiser,
    reference: Reference,
    extractor: FeatureExtractor,
    shape: tuple[int, int, int],
    settings: Settings,
) -> dict[str, float]:
    """Return the scores of `settings.n` samples by name; see `cdm_lightning.metrics.scores`.

    Args:
        composed: what is sampled.
        reference: the held-out images that its samples should be like.
        extractor: the one that made the reference.
        shape: (channel, height, width).
        settings: number, noise and sampler of the samples.
    """
    generated = extractor(sampled_images(composed, shape, settings))
    return scores(generated, reference.features, reference.sums, extractor.name, settings.seed)


def composed_fidelity(
    composed: ComposedDenoiser,
    references: Mapping[str, Reference],
    extractor: FeatureExtractor,
    shape: tuple[int, int, int],
    settings: Settings,
) -> dict[str, float] | None:
    """Return `fidelity` to the held-out images of all its sources, or None if one of them has no reference."""
    if not all(source in references for source in composed.sources):
        return None
    prior = dict(zip(composed.sources, composed.prior.tolist(), strict=True))
    return fidelity(composed, joined(references, prior), extractor, shape, settings)


def sampled_images(composed: ComposedDenoiser, shape: tuple[int, int, int], settings: Settings) -> Tensor:
    """Return `settings.n` samples, uint8 [n, channel, height, width]; image k is a function of (seed, k) alone."""
    parts = batched(settings.n, settings.batch_size)
    return images_of_batches(((composed, part) for part in parts), shape, settings)


def images_of_batches(
    batches: Iterable[tuple[ComposedDenoiser, Sequence[int]]], shape: tuple[int, int, int], settings: Settings
) -> Tensor:
    """Return samples of several models as one run, uint8 [n, channel, height, width], on the device of the settings.

    Args:
        batches: models, each with the k of the images that it samples together; every k below n occurs once in all.
        shape: (channel, height, width).
        settings: number n, noise and sampler of the samples.
    """
    images = torch.empty((settings.n, *shape), dtype=torch.uint8, device=settings.device)
    for composed, indices in batches:
        images[list(indices)] = to_uint8(sample_batch(composed, shape, indices, settings, weigh=False).images)
    return images
