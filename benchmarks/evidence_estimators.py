"""The estimators that `benchmarks.evidence` compares, each from one source's images and what `public` gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.evidence import NetworkEvidence, path_log_density
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.seeding import generator
from cdm_lightning.source_forms import fit_untrained

SIGMAS = (20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
STEPS_BETWEEN = 4
NETWORK_SIGMAS = (0.5, 0.2, 0.05)


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
        """Noise the first held-out images of every source, as many as the source with the fewest has."""
        levels = path_levels()
        noise = generator(seed, "evidence", *compartments)
        fewest = min(len(images) for images in held_out)
        x, path, before = torch.cat([images[:fewest] for images in held_out]), [], 0.0
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
    parts = {name: fit_untrained(x, compartments.public, MOST_CLUSTERS, seed, name) for name, x in train.items()}
    return Cast.of(compartments.with_sources(parts), train, held_out, seed)


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
    below = [sigma for sigma in NETWORK_SIGMAS if sigma < own.sigma_switch]
    return {sigma: torch.stack([one.log_density(*cast.at(sigma)) for one in evidence]) for sigma in below}


def path(cast: Cast) -> dict[float, Tensor]:
    """Return the log densities filtered along the noising path, from the closed forms' at its first level."""
    x, sigma = cast.at(SIGMAS[0])
    filtered = [
        path_log_density(cast.compartments[source], cast.path, cast.levels, part.closed_form.log_density(x, sigma))
        for source, part in cast.compartments.compartments.items()
    ]
    return {sigma: torch.stack([one[i * STEPS_BETWEEN] for one in filtered]) for i, sigma in enumerate(SIGMAS)}
