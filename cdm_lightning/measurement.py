"""What is measured of a store's composed model: its samples, its credits and its denoising error, on held-out images.

For the same images and settings the numbers are those that a fit logs after its last source.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.attribution import SIGMAS, HeldOutCredits, Judgement, heldout_credits
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.evaluation import COMPOSED_SIGMA, composed_errors
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import composed_fidelity
from cdm_lightning.generation import Settings, finite_or_text
from cdm_lightning.reference import FEWEST, references_of
from cdm_lightning.store import Store
from cdm_lightning.versions import versions

COMPOSED = "composed"  # no source has this name
PACKAGES = ("cdm_lightning", "torch", "torch-fidelity", "timm")
Scores = dict[str, dict[str, float] | None]


@dataclass(frozen=True)
class Measurement:
    """The numbers of a composed model; what cannot be measured is None or left out, never wrong.

    Attributes:
        scores: of `composed` and of every source alone, see `cdm_lightning.metrics.scores`; empty without an extractor.
        evaluations: network evaluations per image sampled from the composed model.
        errors: of the composed model by source, see `composed_errors`.
        credits: see `heldout_credits`.
    """

    scores: Scores
    evaluations: float | None
    errors: dict[str, float]
    credits: HeldOutCredits | None


def measure(
    compartments: Compartments,
    held_out: Mapping[str, Tensor],
    settings: Settings,
    extractor: FeatureExtractor | None,
    references: Path,
) -> Measurement:
    """Measure the composed model of opened compartments.

    Args:
        compartments: all of its sources, on `settings.device`.
        held_out: uint8 [n, channel, height, width] by source; a source without such images is measured as far as it can
            be, and so is the composed model.
        settings: strategy, number, noise and sampler of the samples.
        extractor: makes the features that are compared; None samples nothing.
        references: folder where the features of each source's held-out images are kept, if it can be written.
    """
    images = {source: some.to(settings.device) for source, some in held_out.items() if len(some)}
    composed, scores, evaluations = compartments.composed(settings.strategy), Scores(), None
    if extractor is not None:
        shape, known = compartments.public.closed_form.shape, references_of(references, images, extractor)
        before = compartments.evaluations
        scores[COMPOSED] = composed_fidelity(composed, known, extractor, shape, settings)
        if scores[COMPOSED] is not None:
            evaluations = (compartments.evaluations - before) / settings.n
        for source, alone in _alone(composed):
            scores[source] = composed_fidelity(alone, known, extractor, shape, settings)
    floor = compartments.public.calibration.floor
    return Measurement(scores, evaluations, composed_errors(composed, images), heldout_credits(composed, floor, images))


def _alone(composed: ComposedDenoiser) -> Iterator[tuple[str, ComposedDenoiser]]:
    return ((source, composed.alone(source)) for source in composed.sources)


def report(
    store: Store,
    compartments: Compartments,
    held_out: Mapping[str, Tensor],
    settings: Settings,
    extractor: str,
    found: Measurement,
) -> dict[str, Any]:
    """Return a measurement as JSON, with all that is needed to repeat it but the place of the images.

    Args:
        store: where the compartments come from.
        compartments: what was measured.
        held_out: on which images.
        settings: how it was sampled.
        extractor: the name of the extractor, or `none`.
        found: what `measure` returned.
    """
    counts = {source: len(held_out.get(source, ())) for source in compartments}
    return {
        "store": str(store.path),
        "sources": list(compartments),
        "split": "heldout",
        "reference_images": counts,
        "extractor": extractor,
        **{name: getattr(settings, name) for name in ("n", "sampler", "steps", "strategy", "seed", "device")},
        "sigma_switch": finite_or_text(compartments.sigma_switch),
        "network_evaluations_per_image": found.evaluations,
        "scores": found.scores,
        "heldout_error": {source: found.errors.get(source) for source in compartments},
        "heldout_error_sigma": COMPOSED_SIGMA,
        "attribution": None if found.credits is None else attribution_report(found.credits),
        "remarks": list(_remarks(counts, extractor)),
        "backbone_sha256": store.info.backbone_sha256,
        "compartments_sha256": store.compartments_sha256(list(compartments)),
        "versions": versions(*PACKAGES),
        "threads": torch.get_num_threads(),
    }


def attribution_report(found: HeldOutCredits) -> dict[str, Any]:
    """Return credits as JSON; `by_sigma` has an entry per noise level.

    `matrix` is [true source][credited source], `accuracy_by_source` in the same order.
    """
    levels = zip(SIGMAS, found.by_sigma, strict=True)
    return _judged(found.credits) | {
        "accuracy_by_source": found.credits.accuracy_by_source,
        "matrix": found.credits.matrix.tolist(),
        "by_sigma": [{"sigma": sigma} | _judged(level) for sigma, level in levels],
    }


def _judged(judgement: Judgement) -> dict[str, float | bool]:
    return judgement.scalars() | {"informative": judgement.informative}


def _remarks(counts: Mapping[str, int], extractor: str) -> Iterator[str]:
    """Yield what could not be measured for want of held-out images."""
    for source, count in counts.items():
        if not count:
            yield f"source '{source}' has no held-out image: so the composed model has no scores and no attribution"
        elif count < FEWEST and extractor != "none":
            yield f"source '{source}' has {count} held-out image, scores need {FEWEST}: so the composed model has none"
