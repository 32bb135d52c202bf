"""Fidelity: how close the samples of a composed denoiser are to held-out images, as an extractor sees both."""

from collections.abc import Mapping

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
    return fidelity(composed, joined(references, composed.sources), extractor, shape, settings)


def sampled_images(composed: ComposedDenoiser, shape: tuple[int, int, int], settings: Settings) -> Tensor:
    """Return `settings.n` samples, uint8 [n, channel, height, width]; image k is a function of (seed, k) alone."""
    parts = batched(settings.n, settings.batch_size)
    return to_uint8(torch.cat([sample_batch(composed, shape, part, settings, weigh=False).images for part in parts]))
