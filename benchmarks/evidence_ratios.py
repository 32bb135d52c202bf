"""Heads of `ratio` for all sources of a cast, and their logits on its held-out images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.evidence_estimators import SIGMAS, Cast
from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import per_image
from cdm_lightning.evidence import BackboneFeatures, NoisedFeatures, RatioHead, Whitening
from cdm_lightning.seeding import generator

KNOTS = torch.logspace(math.log10(0.05), math.log10(5.0), 7)
KEPT, RIDGES, PASSES = 256, (3e-3, 1e-2, 3e-2), 1
PUBLIC_SHARE = 6  # images of public for each image of a source
BATCH = 128


class Ratios:
    """Heads of all sources against one stream of noised `public`; its features are computed once.

    Args:
        compartments: give the frozen backbone and `public`'s closed form.
        public: training images of `public`.
        images: of each source, at most; of `public` PUBLIC_SHARE times as many.
        seed: of the noise.
    """

    def __init__(self, compartments: Compartments, public: Tensor, images: int, seed: int) -> None:
        own, self.images, self.seed = compartments, images, seed
        guide = own.public.closed_form if own.guided else None
        self.bare = BackboneFeatures(own.backbone, guide, own.preconditioning)  # type: ignore[arg-type]
        bare = self.noised(self._some(public, PUBLIC_SHARE * images), "public", 1)
        self.whitening = Whitening.fit(bare, KNOTS, KEPT)
        self.public = self.whitening(bare)

    def noised(self, x_0: Tensor, name: str, passes: int) -> NoisedFeatures:
        """Return bare features of images at levels that are even in log sigma, each image `passes` times."""
        draws = generator(self.seed, "ratio", name)
        x_0 = x_0.repeat(passes, 1, 1, 1)
        share = torch.rand(len(x_0), generator=draws)
        sigma = KNOTS[0] * (KNOTS[-1] / KNOTS[0]) ** share
        parts = []
        for clean, level in zip(x_0.split(BATCH), sigma.split(BATCH), strict=True):
            parts.append(self.bare(clean + per_image(level, clean) * torch.randn(clean.shape, generator=draws), level))
        return NoisedFeatures(torch.cat([part.value for part in parts]), sigma)

    def _some(self, x: Tensor, most: int) -> Tensor:
        """Return `most` images, drawn without replacement; all, if they are fewer."""
        return x[torch.randperm(len(x), generator=generator(self.seed, "ratio", "some"))[:most]]

    def of(self, cast: Cast) -> "CastRatios":
        """Return the training features of each source of a cast, and those of its held-out images by level."""
        own = {
            name: self.whitening(self.noised(self._some(x, self.images), name, PASSES))
            for name, x in cast.train.items()
        }
        seen = {}
        for sigma in [sigma for sigma in SIGMAS if sigma <= float(KNOTS[-1])]:
            x, level = cast.at(sigma)
            parts = [self.bare(some, at).value for some, at in zip(x.split(BATCH), level.split(BATCH), strict=True)]
            seen[sigma] = self.whitening(NoisedFeatures(torch.cat(parts), level))
        return CastRatios(own, seen, self.public)


@dataclass(frozen=True)
class CastRatios:
    """Features of a cast: `own` by source for training, `seen` by level, of held-out images; and those of `public`."""

    own: Mapping[str, NoisedFeatures]
    seen: Mapping[float, NoisedFeatures]
    public: NoisedFeatures

    def heads(self, ridge: float) -> list[RatioHead]:
        """Fit the head of every source."""
        with torch.inference_mode(False), torch.enable_grad():
            return [RatioHead.fit(_plain(own), _plain(self.public), KNOTS, ridge) for own in self.own.values()]

    def logits(self, heads: Sequence[RatioHead]) -> dict[float, Tensor]:
        """Return the logits [source, image] by level."""
        return {sigma: torch.stack([head.logit(seen) for head in heads]) for sigma, seen in self.seen.items()}


def _plain(features: NoisedFeatures) -> NoisedFeatures:
    return NoisedFeatures(features.value.clone(), features.sigma.clone())
