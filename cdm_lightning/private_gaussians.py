"""The closed form of a private source: released under differential privacy, then estimated from what was released.

`release` is the only function that sees images. It takes three kinds of Gaussian releases, each of which may use what
the ones before have said, so together they are one of the composed mu (`gaussian_mechanism.composed`):

1. counts and sums around `public`'s mean: where the source lies;
2. twice, counts and sums in cells around it: k-means (Lloyd 1982) with noise;
3. counts, sums and energies by cell, and one second moment for all cells.

Everything else (radii, directions, what estimates are shrunk towards) is known from `public` or is a constant.
`estimate` makes Gaussians with one covariance up to a factor of each. A released number is shrunk towards what `public`
lets expect by the linear rule, weight = v / (v + t^2), v the variance around the expectation, t^2 that of the noise.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from cdm_lightning.gaussians import Gaussians
from cdm_lightning.released_statistics import Cells, Moments, Noise, Sums, release_moments, release_sums

MOST_DIRECTIONS = 1024  # of the second moment
MOST_CELLS = 8
STEPS = 2  # of k-means
PLACE_SHARE, STEPS_SHARE = 0.08, 0.12  # of mu^2; the rest is for the moments
FAR, NEAR, FARTHEST = 1.3, 0.7, 1.6  # radii, in deviations of public: of sums, of moments, of energies
START = 0.6  # of the first centres, in deviations of public
CELL_SPREAD = 0.5  # variance of a cell's offset, in variances of public
ENERGY_SPREAD = 0.1  # variance of a cell's energy, in squares of the mean
CONSTANT = 1e-6  # of the mean variance of pixels: no pixel is taken to have less
CORRELATION = 0.01  # variance of the correlation of two directions


@dataclass(frozen=True)
class Frame:
    """What `public` lets expect of a source.

    Attributes:
        mean: [dimension].
        directions: [dimension, dimension], orthonormal columns, those of most variance first.
        total: [dimension], variance along each.
        inside: [dimension], the same inside the clusters of `public`.
        within: [dimension, dimension], covariance inside the clusters.
        shape: (channel, height, width) of an image.
    """

    mean: Tensor
    directions: Tensor
    total: Tensor
    inside: Tensor
    within: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, public: Gaussians) -> "Frame":
        """Return the frame that the closed form of `public` gives; float64."""
        parts = (public.log_share.exp(), public.mean, public.basis, public.variance, public.rest)
        share, means, basis, variance, rest = (tensor.double() for tensor in parts)
        mean = share @ means
        within = (share @ rest) * torch.eye(len(mean), dtype=torch.float64)
        for k, one in enumerate(basis):
            within += share[k] * (one * (variance[k] - rest[k])) @ one.T
        offset = (means - mean) * share.sqrt()[:, None]
        total, directions = _spectrum(within + offset.T @ offset)
        inside = ((within @ directions) * directions).sum(0)
        return cls(mean, directions, total, inside, within, public.shape)

    @property
    def kept(self) -> Tensor | None:
        """Return the directions of the second moment [dimension, direction]; None is every pixel."""
        return None if len(self.mean) <= MOST_DIRECTIONS else self.directions[:, :MOST_DIRECTIONS]

    def shrunk(self, mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """Return offsets [row, dimension] shrunk towards 0.

        Args:
            mean: the offsets as they were released.
            spread: [dimension], the variance that is expected along each direction.
            noise: [row], deviation of the noise in every number of a row.
        """
        weight = spread / (spread + noise.square()[:, None])
        return ((mean @ self.directions) * weight) @ self.directions.T


@dataclass(frozen=True)
class Released:
    """All that has left a private source.

    Attributes:
        sums: of the first releases.
        cells: of the last one.
        moments: the last one.
    """

    sums: tuple[Sums, ...]
    cells: Cells
    moments: Moments

    @property
    def n(self) -> int:
        """Return the number of images, at least 1: the mean of all counts, weighed by how exact they are."""
        counts = [*self.sums, self.moments]
        exact = [1 / (len(one.count) * one.count_noise**2) for one in counts]
        mean = sum(w * float(one.count.sum()) for w, one in zip(exact, counts, strict=True)) / sum(exact)
        return max(1, round(mean))


def fit_private(
    images: Tensor, frame: Frame, *, mu: float, noise: Noise, rank: int, clusters: int
) -> tuple[Gaussians, int]:
    """Return the closed form of a private source and its released number of images.

    Args:
        images: [n, channel, height, width] in [-1, 1], distinct, n >= 0; the result has their dtype.
        frame: of `public`.
        mu: of everything together (see `gaussian_mechanism`).
        noise: gives standard normal numbers; from a secret, unless the images are public.
        rank: the number of directions that a Gaussian keeps, at most.
        clusters: Gaussians, at most; a power of two up to 8 is used.
    """
    released = release(images.flatten(1).double(), frame, mu, noise, clusters)
    form = estimate(released, frame, min(rank, len(frame.mean) - 1))
    return form.to(images.device, images.dtype), released.n


def release(flat: Tensor, frame: Frame, mu: float, noise: Noise, clusters: int) -> Released:
    """Release all that will ever be known of images [n, dimension]; see `fit_private`."""
    splits = int(math.log2(min(clusters, MOST_CELLS)))
    far, near = float(frame.total.sum().sqrt()), float(frame.inside.sum().sqrt())
    place_mu = mu * math.sqrt(PLACE_SHARE)
    step_mu = mu * math.sqrt(STEPS_SHARE / STEPS)
    cells = Cells(frame.mean[None], FAR * far)
    sums = [release_sums(flat, cells, place_mu, noise)]
    cells = Cells(_moved(cells, sums[-1], frame, frame.total) + _split(frame, splits), FAR * near)
    for _ in range(STEPS):
        sums.append(release_sums(flat, cells, step_mu, noise))
        cells = Cells(_moved(cells, sums[-1], frame, frame.inside), cells.radius)
    cells = Cells(cells.centre, NEAR * near)
    last_mu = mu * math.sqrt(1 - PLACE_SHARE - STEPS_SHARE)
    moments = release_moments(flat, cells, FARTHEST * near, frame.kept, last_mu, noise)
    return Released(tuple(sums), cells, moments)


def estimate(released: Released, frame: Frame, rank: int) -> Gaussians:
    """Return the Gaussians that a release speaks for; it does not see the images."""
    cells, moments = released.cells, released.moments
    count = moments.count.clamp_min(1.0)
    share, offset = count / count.sum(), _offsets(moments, frame, CELL_SPREAD * frame.inside)
    by_cell = moments.energy / count - offset.square().sum(1)
    energy = float((share @ by_cell).clamp_min(1e-3 * frame.inside.sum()))
    variance, basis, rest = _covariance(moments, share, offset, energy, frame, rank)
    factor = _factors(by_cell / energy, moments.energy_noise / (count * energy))
    return Gaussians(
        log_share=share.log(),
        mean=cells.centre + offset,
        basis=basis.expand(len(share), -1, -1).contiguous(),
        variance=factor[:, None] * variance,
        rest=factor * rest,
        shape=frame.shape,
    )


def _covariance(
    moments: Moments, share: Tensor, offset: Tensor, energy: float, frame: Frame, rank: int
) -> tuple[Tensor, Tensor, float]:
    """Return variance [rank], basis [dimension, rank] and the variance elsewhere, of all cells together.

    The images behind the second moment were cut to a norm, which hardly turns it: it is taken times a factor, so that
    its trace is the released energy. It is shrunk towards `expected`, in the directions of that.
    """
    kept, dimension = frame.kept, len(frame.mean)
    along, within = (offset, frame.within) if kept is None else (offset @ kept, kept.T @ frame.within @ kept)
    n, outside = float(moments.count.clamp_min(1.0).sum()), dimension - len(within)
    rest = energy * float(frame.inside[len(within) :].sum() / frame.inside.sum()) / max(outside, 1)
    moment = moments.moment / n - (along * share[:, None]).T @ along
    scale = (energy - outside * rest) / max(float(moment.trace()), 1e-3 * float(within.trace()))
    moment, noise = moment * scale, moments.moment_noise / n * scale
    prior = expected(moment, noise, energy, frame)
    size, directions = _spectrum(prior)
    size = size.clamp_min(1e-4 * float(size.mean()))
    spread = CORRELATION * size[:, None] * size
    weight = spread / (spread + (noise**2 / 2) * (1 + torch.eye(len(size), dtype=size.dtype)))
    shrunk = prior + directions @ (weight * (directions.T @ (moment - prior) @ directions)) @ directions.T
    values, vectors = _spectrum(shrunk)
    released = min(rank, len(values))
    left = (float(values[released:].sum()) + outside * rest) / (dimension - released)
    left = max(left, 1e-3 * energy / dimension)
    basis = vectors[:, :released] if kept is None else kept @ vectors[:, :released]
    missing = rank - released
    return (
        pad(values[:released].clamp_min(left), (0, missing), value=left),
        pad(basis, (0, missing)),
        left,
    )


def expected(moment: Tensor, noise: float, energy: float, frame: Frame) -> Tensor:
    """Return the covariance that the variances of the pixels let expect, with the correlations of `public`.

    Args:
        moment: [direction, direction], released.
        noise: the deviation of the noise on its diagonal.
        energy: the released trace.
        frame: of `public`.
    """
    kept, pixel = frame.kept, frame.within.diagonal()
    pixel = pixel.clamp_min(CONSTANT * float(pixel.mean()))  # one that is the same in all of `public` has no variance
    usual = pixel * (energy / pixel.sum())
    own = moment.diagonal() if kept is None else ((kept @ moment) * kept).sum(1)
    weight = usual.square() / (usual.square() + noise**2)
    variance = (weight * own + (1 - weight) * usual).clamp_min(0.01 * float(usual.mean()))
    ratio = (variance * (energy / variance.sum()) / pixel).sqrt()
    if kept is None:
        return ratio[:, None] * frame.within * ratio
    scaled = ratio[:, None] * kept
    return scaled.T @ frame.within @ scaled


def _factors(ratio: Tensor, noise: Tensor) -> Tensor:
    """Return the energy of each cell over the mean [cell], shrunk towards 1, at least a fifth."""
    weight = ENERGY_SPREAD / (ENERGY_SPREAD + noise.square())
    return (weight * ratio + (1 - weight)).clamp_min(0.2)


def _offsets(sums: Sums, frame: Frame, spread: Tensor) -> Tensor:
    """Return where the mean of each cell lies [cell, dimension], as seen from its centre."""
    count = sums.count.clamp_min(1.0)
    return frame.shrunk(sums.sum / count[:, None], spread, sums.sum_noise / count)


def _moved(cells: Cells, sums: Sums, frame: Frame, spread: Tensor) -> Tensor:
    return cells.centre + _offsets(sums, frame, spread)


def _split(frame: Frame, splits: int) -> Tensor:
    """Return 2^splits offsets [cell, dimension], to both sides along each of the first directions."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=splits)), dtype=torch.float64)
    return START * (signs * frame.inside[:splits].sqrt()) @ frame.directions[:, :splits].T


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, the largest first, and the eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)
