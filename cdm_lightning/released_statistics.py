"""What leaves a private source: noised counts, sums, energies and second moments of its images, and nothing else.

Every image is one record: adding or removing it is what must not show. An image belongs to the cell of the nearest of
some centres, which are known before the release. With y = x - centre, cut to norm C, and e = |x - centre|^2, cut at E,
it adds to one vector of sums

    (COUNT, SUM y / C)                                                                  in a release of `sums`,
    (COUNT, SUM y / C, ENERGY e / E) and the upper triangle of MOMENT z z^T / C^2       in one of `moments`,

z = y in the first directions of `public` if there are too many pixels, otherwise y; off the diagonal the triangle is
multiplied by sqrt(2), so its norm is |z|^2 / C^2 <= 1. All but the triangle goes into the rows of the image's own cell,
and no other image changes its cell. So one image more or less moves the vector by at most

    sqrt(COUNT^2 + SUM^2)    and    sqrt(COUNT^2 + SUM^2 + ENERGY^2 + MOMENT^2),

which is reached (|y| = C, e = E). Normal noise of this sensitivity over mu is added to every number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.secret_noise import snapped

Noise = Callable[[int], Tensor]  # that many independent standard normal numbers, float64

COUNT, SUM, ENERGY, MOMENT = 0.3, 0.5, 0.2, 1.0
SUMS_SENSITIVITY = math.hypot(COUNT, SUM)
MOMENTS_SENSITIVITY = math.hypot(COUNT, SUM, ENERGY, MOMENT)


@dataclass(frozen=True)
class Cells:
    """Where images are counted; known before the release.

    Attributes:
        centre: [cell, dimension], in units of x_0.
        radius: C, the norm that an image's distance from its centre is cut to.
    """

    centre: Tensor
    radius: float

    def of(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cell [n] of images [n, dimension], and what they are as seen from its centre."""
        cell = torch.cdist(flat, self.centre).argmin(1)
        return cell, flat - self.centre[cell]


@dataclass(frozen=True)
class Sums:
    """Released counts and sums, in units of images and x_0, and the deviations of their noise.

    Attributes:
        count: [cell] of images.
        sum: [cell, dimension] of images as seen from the centre, cut.
        count_noise: deviation of the noise in each count.
        sum_noise: and in each sum.
    """

    count: Tensor
    sum: Tensor
    count_noise: float
    sum_noise: float


@dataclass(frozen=True)
class Moments(Sums):
    """Released sums with energies and second moments.

    Attributes:
        energy: [cell], sum of squared distances from the centre.
        moment: [direction, direction], sum over all cells of z z^T.
        energy_noise: deviation of the noise in each energy.
        moment_noise: and on the diagonal of the second moment; off it, this over sqrt(2).
    """

    energy: Tensor
    moment: Tensor
    energy_noise: float
    moment_noise: float


def sums_of(flat: Tensor, cells: Cells) -> Tensor:
    """Return the vector of sums [cell * (1 + dimension)] of images [n, dimension], n >= 0, without noise."""
    cell, seen = cells.of(flat)
    return _by_cell(cell, len(cells.centre), _cut(seen, cells.radius) * (SUM / cells.radius)).flatten()


def moments_of(flat: Tensor, cells: Cells, farthest: float, directions: Tensor | None) -> Tensor:
    """Return the vector of sums of a release of moments, without noise: those by cell, then the triangle.

    Args:
        flat: images [n, dimension], n >= 0.
        cells: where they are counted.
        farthest: sqrt(E), the distance from the centre above which an energy is cut.
        directions: [dimension, direction] orthonormal columns, or None for every pixel.
    """
    cell, seen = cells.of(flat)
    energy = seen.square().sum(1).clamp_max(farthest**2) * (ENERGY / farthest**2)
    cut = _cut(seen, cells.radius) / cells.radius
    rows = _by_cell(cell, len(cells.centre), torch.cat([SUM * cut, energy[:, None]], 1))
    along = cut if directions is None else cut @ directions
    moment = MOMENT * (along.T @ along)
    upper = torch.triu_indices(*moment.shape)
    doubled = torch.where(upper[0] == upper[1], 1.0, math.sqrt(2)).to(moment)
    return torch.cat([rows.flatten(), moment[upper[0], upper[1]] * doubled])


def release_sums(flat: Tensor, cells: Cells, mu: float, noise: Noise) -> Sums:
    """Release counts and sums with noise of `mu` (see `gaussian_mechanism`)."""
    deviation, places = SUMS_SENSITIVITY / mu, len(cells.centre)
    noised = _noised(sums_of(flat, cells), deviation, noise).reshape(places, -1)
    unit = cells.radius / SUM
    return Sums(noised[:, 0] / COUNT, noised[:, 1:] * unit, deviation / COUNT, deviation * unit)


def release_moments(
    flat: Tensor, cells: Cells, farthest: float, directions: Tensor | None, mu: float, noise: Noise
) -> Moments:
    """Release counts, sums, energies and second moments with noise of `mu`; arguments as in `moments_of`."""
    deviation, (places, dimension) = MOMENTS_SENSITIVITY / mu, cells.centre.shape
    noised = _noised(moments_of(flat, cells, farthest, directions), deviation, noise)
    rows = noised[: places * (dimension + 2)].reshape(places, -1)
    moment = _symmetric(noised[places * (dimension + 2) :], dimension if directions is None else directions.shape[1])
    unit, unit_moment, unit_energy = cells.radius / SUM, cells.radius**2 / MOMENT, farthest**2 / ENERGY
    return Moments(
        count=rows[:, 0] / COUNT,
        sum=rows[:, 1:-1] * unit,
        count_noise=deviation / COUNT,
        sum_noise=deviation * unit,
        energy=rows[:, -1] * unit_energy,
        moment=moment * unit_moment,
        energy_noise=deviation * unit_energy,
        moment_noise=deviation * unit_moment,
    )


def _noised(sums: Tensor, deviation: float, noise: Noise) -> Tensor:
    return snapped(sums + deviation * noise(len(sums)), deviation)


def _by_cell(cell: Tensor, cells: int, columns: Tensor) -> Tensor:
    """Return, for each cell, COUNT times its images, and the sums [cell, 1 + column] of their `columns`."""
    counted = torch.cat([columns.new_full((len(columns), 1), COUNT), columns], 1)
    own = (torch.arange(cells)[:, None] == cell).to(counted)
    return torch.mm(own, counted)


def _cut(seen: Tensor, radius: float) -> Tensor:
    """Return rows [n, dimension], those longer than `radius` shortened to it."""
    longer = (seen.norm(dim=1, keepdim=True) / radius).clamp_min(1)
    return torch.div(seen, longer)


def _symmetric(triangle: Tensor, side: int) -> Tensor:
    """Return the symmetric matrix [side, side] whose upper triangle, off the diagonal times sqrt(2), this is."""
    matrix, upper = triangle.new_zeros(side, side), torch.triu_indices(side, side)
    matrix[upper[0], upper[1]] = triangle
    return (matrix + matrix.T) / math.sqrt(2) + torch.diag(matrix.diagonal() * (1 - math.sqrt(2)))
