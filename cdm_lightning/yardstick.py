"""The yardstick: everything that samples of different models are measured with, the same for all of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.images import spread
from cdm_lightning.intervals import HalfSamples, score_interval
from cdm_lightning.metrics import score_name, scores
from cdm_lightning.near_copies import NearCopies
from cdm_lightning.proportions import SourceJudge, proportions
from cdm_lightning.reference import Reference, in_shares, joined, references_of, source_reference
from cdm_lightning.resampled_scores import frechet_replicates, kid_replicates

JUDGE_IMAGES = 500  # training images of each source that the judge of sources learns from, unless said otherwise


@dataclass(frozen=True)
class Yardstick:
    """Held-out images, training images and prior of the sources, as samples are compared with them.

    Attributes:
        extractor: its name.
        reference: features of the held-out images of all sources.
        copies: what is a near-copy of a training image.
        judge: names the source of an image; None for a single source, or if nobody asked.
        judge_images: training images of each source that it learned from.
        prior: lambda_i by source.
    """

    extractor: str
    reference: Reference
    copies: NearCopies
    judge: SourceJudge | None
    judge_images: int
    prior: Mapping[str, float]

    @classmethod
    def of(
        cls,
        heldout: Mapping[str, Tensor],
        training: Mapping[str, Tensor],
        prior: Mapping[str, float],
        extractor: FeatureExtractor,
        kept: Path,
        judge_images: int = JUDGE_IMAGES,
    ) -> "Yardstick":
        """Return the yardstick of sources.

        Args:
            heldout: uint8 [n, channel, height, width] by source, n at least 2.
            training: likewise, n at least 1.
            prior: lambda_i by source.
            extractor: makes features.
            kept: folder where features are kept.
            judge_images: training images of each source that the judge learns from; 0: no judge.
        """
        known = references_of(kept, heldout, extractor)
        judge = None
        if len(heldout) > 1 and judge_images:
            shown = {
                source: source_reference(kept, source, spread(images, judge_images), extractor).features
                for source, images in training.items()
            }
            judge = SourceJudge.fit(shown, {source: reference.features for source, reference in known.items()})
        count = in_shares({source: len(images) for source, images in heldout.items()}, prior)
        some = torch.cat([spread(images, count[source]) for source, images in heldout.items()])
        copies = NearCopies.of(torch.cat(list(training.values())), some)
        return cls(extractor.name, joined(known, prior), copies, judge, judge_images, prior)

    def measure(self, images: Tensor, features: Tensor, seed: int) -> dict[str, Any]:
        """Return scores, their intervals, proportions of sources and the share of near-copies, as JSON.

        Args:
            images: sampled, uint8 [n, channel, height, width], n at least 4.
            features: of these images [n, dimension].
            seed: of the subsets of KID and of the half-samples.
        """
        found = scores(features, self.reference.features, self.reference.sums, self.extractor, seed)
        halves = HalfSamples.draw(len(features), len(self.reference.features), seed)
        frechet, kid = (score_name(metric, len(features), self.extractor) for metric in ("frechet", "kid"))
        replicates = {
            frechet: frechet_replicates(features, self.reference.features, halves),
            kid: kid_replicates(features, self.reference.features, halves),
        }
        return {
            **self.judged(features),
            "scores": found,
            "intervals": {name: asdict(score_interval(found[name], some)) for name, some in replicates.items()},
            "replicates": replicates[frechet].tolist(),
            "near_copies": asdict(self.copies.share(images)),
        }

    def judged(self, features: Tensor) -> dict[str, Any]:
        """Return the source that the judge names of each sample, and the proportions of sources, as JSON."""
        if self.judge is None:
            return {"named": None, "proportions": None}
        named = self.judge.named(features)
        return {"named": named.tolist(), "proportions": asdict(proportions(named, self.judge.confusion, self.prior))}

    def report(self) -> dict[str, Any]:
        """Return what the yardstick itself is like, as JSON."""
        judge = None if self.judge is None else {"accuracy": self.judge.accuracy, "training_images": self.judge_images}
        return {
            "reference_images": len(self.reference.features),
            "training_images": len(self.copies.training),
            "prior": dict(self.prior),
            "judge": judge,
            "near_copies_heldout": asdict(self.copies.heldout),
            "near_copies_threshold": self.copies.threshold,
        }
