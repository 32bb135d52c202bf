"""The estimators that `benchmarks.evidence` compares, each from one source's images and what `public` gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import per_image
from cdm_lightning.evidence import (
    BackboneFeatures,
    NetworkEvidence,
    NoisedFeatures,
    RatioHead,
    Whitening,
    path_log_density,
)
from cdm_lightning.seeding import generator
from cdm_lightning.source_forms import fit_closed_form

SIGMAS = (20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
STEPS_BETWEEN = 4
KNOTS = torch.logspace(math.log10(0.05), math.log10(5.0), 7)
KEPT, RIDGES, PASSES = 256, (1e-3, 3e-3, 1e-2, 3e-2), 2
BATCH = 128


@dataclass(frozen=True)
class Cast:
    """Sources, and held-out images of each on their way from little noise to much.

    Attributes:
        compartments: of the sources.
        train: training images [n, ...] in [-1, 1], by source.
        path: [level, source * image, channel, height, width], at falling noise `levels`.
        levels: [level].
    """

    compartments: Compartments
    train: Mapping[str, Tensor]
    path: Tensor
    levels: Tensor

    @classmethod
    def of(
        cls, compartments: Compartments, train: Mapping[str, Tensor], held_out: Sequence[Tensor], seed: int
    ) -> "Cast":
        """Noise the same number of held-out images of every source."""
        levels = path_levels()
        noise = generator(seed, "evidence", *compartments)
        x, path, before = torch.cat(list(held_out)), [], 0.0
        for level in levels.flip(0).tolist():
            x = x + math.sqrt(level**2 - before**2) * torch.randn(x.shape, generator=noise)
            path.append(x)
            before = level
        return cls(compartments, train, torch.stack(path[::-1]), levels)

    @property
    def images(self) -> int:
        """Return the number of images of each source."""
        return self.path.shape[1] // len(self.compartments)

    def at(self, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the images at a level of `SIGMAS`, and that level [batch]."""
        x = self.path[SIGMAS.index(sigma) * STEPS_BETWEEN]
        return x, x.new_full((len(x),), sigma)

    def first(self, images: int) -> "Cast":
        """Return the same with only the first images of each source."""
        rows = torch.arange(self.path.shape[1]).reshape(len(self.compartments), -1)[:, :images].flatten()
        return Cast(self.compartments, self.train, self.path[:, rows], self.levels)


def path_levels() -> Tensor:
    """Return the falling levels of a path through `SIGMAS`, evenly spaced in the logarithm between them."""
    grid = torch.tensor(SIGMAS, dtype=torch.float64).log()
    share = torch.arange(STEPS_BETWEEN, dtype=torch.float64) / STEPS_BETWEEN
    between = grid[:-1, None] + share * (grid[1:] - grid[:-1])[:, None]
    return torch.cat([between.flatten(), grid[-1:]]).exp()


def pseudo_cast(compartments: Compartments, train: Mapping[str, Tensor], held_out: Sequence[Tensor], seed: int) -> Cast:
    """Return the classes of `public` as sources, by what is fitted on its training part and judged on the other."""
    parts = {
        name: Compartment(len(x), fit_closed_form(x, compartments.public, seed, name)) for name, x in train.items()
    }
    own = compartments
    opened = Compartments(own.backbone, parts, own.public, own.guided, own.sigma_switch, own.preconditioning)
    return Cast.of(opened, train, held_out, seed)


def gaussians(cast: Cast) -> dict[float, Tensor]:
    """Return the closed forms' log densities [source, image] by level."""
    forms = [compartment.closed_form for compartment in cast.compartments.compartments.values()]
    return {sigma: torch.stack([form.log_density(*cast.at(sigma)) for form in forms]) for sigma in SIGMAS}


def kernel(cast: Cast) -> dict[float, Tensor]:
    """Return the exact log densities of the noised training images, a mixture of Gaussians at each of them."""

    def density(x: Tensor, images: Tensor, sigma: float) -> Tensor:
        square = torch.cdist(x.flatten(1), images.flatten(1)).square()
        return (-square / (2 * sigma**2)).logsumexp(1) - math.log(len(images))

    return {sigma: torch.stack([density(cast.at(sigma)[0], x, sigma) for x in cast.train.values()]) for sigma in SIGMAS}


def network(cast: Cast, levels: int, pairs: int, seed: int) -> dict[float, Tensor]:
    """Return the guided networks' log densities below the switch."""
    own = cast.compartments
    evidence = [
        NetworkEvidence(own[source], compartment.closed_form, own.sigma_switch, levels, pairs, seed)
        for source, compartment in own.compartments.items()
    ]
    below = [sigma for sigma in SIGMAS if sigma < own.sigma_switch]
    return {sigma: torch.stack([one.log_density(*cast.at(sigma)) for one in evidence]) for sigma in below}


def path(cast: Cast) -> dict[float, Tensor]:
    """Return the log densities filtered along the noising path, from the closed forms' at its first level."""
    x, sigma = cast.at(SIGMAS[0])
    filtered = [
        path_log_density(cast.compartments[source], cast.path, cast.levels, part.closed_form.log_density(x, sigma))
        for source, part in cast.compartments.compartments.items()
    ]
    return {sigma: torch.stack([one[i * STEPS_BETWEEN] for one in filtered]) for i, sigma in enumerate(SIGMAS)}


class Ratios:
    """Heads of all sources against one stream of noised `public`; its features are computed once.

    Args:
        compartments: give the frozen backbone and `public`'s closed form.
        public: training images of `public`.
        seed: of the noise.
    """

    def __init__(self, compartments: Compartments, public: Tensor, seed: int) -> None:
        own, self.seed = compartments, seed
        guide = own.public.closed_form if own.guided else None
        self.bare = BackboneFeatures(own.backbone, guide, own.preconditioning)  # type: ignore[arg-type]
        bare = self.noised(public, "public", 1)
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

    def of(self, cast: Cast) -> "CastRatios":
        """Return the training features of each source of a cast, and those of its held-out images by level."""
        own = {name: self.whitening(self.noised(x, name, PASSES)) for name, x in cast.train.items()}
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
