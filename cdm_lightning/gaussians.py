"""The closed form of a source: a mixture of low-rank Gaussians, whose noised density and denoiser need no network.

Noise of level sigma adds sigma^2 I to every covariance, so log p(x; sigma) and E[x_0 | x] are closed forms
(Wang and Vastola 2024, arXiv 2412.09726, for one Gaussian; here a mixture per source).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

IMAGES_PER_CLUSTER = (
    250  # fewer make a covariance that does not fit new images; measured, see benchmarks/measurements.md
)
MOST_CLUSTERS = 10


@dataclass(frozen=True)
class Strength:
    """How many samples the normal-inverse-Wishart prior is worth: for a cluster's mean, and for its covariance."""

    mean: float = 1.0
    covariance: float = 30.0


@dataclass(frozen=True)
class Gaussians:
    """A mixture of Gaussians with covariances basis diag(variance) basis^T + rest (I - basis basis^T).

    Attributes:
        log_share: [cluster], log of the share of the samples that each cluster holds.
        mean: [cluster, dimension], in units of x_0.
        basis: [cluster, dimension, rank], orthonormal columns; those that few samples cannot fill are zero.
        variance: [cluster, rank], variance along each column, at least `rest`.
        rest: [cluster], variance in every other direction.
        shape: (channel, height, width) of an image.
    """

    log_share: Tensor
    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        seed: int,
        public: "Gaussians | None" = None,
        strength: Strength | None = None,
        rank: int = 64,
        clusters: int = MOST_CLUSTERS,
        images_per_cluster: int = IMAGES_PER_CLUSTER,
    ) -> "Gaussians":
        """Fit clamp(n // images_per_cluster, 1, clusters) clusters by k-means, and a Gaussian to each.

        In float64 inside, with one thread.

        Args:
            images: [n, channel, height, width] in [-1, 1], n >= 1; the result has their dtype.
            seed: seeds k-means.
            public: where given, each cluster is shrunk towards its nearest cluster by a normal-inverse-Wishart prior.
            strength: of that prior, in samples.
            rank: the number of directions that a cluster keeps, at most.
            clusters: at most.
            images_per_cluster: at least, on average.
        """
        flat = images.flatten(1).double()
        cluster = cluster_of(flat, seed, min(len(flat) // images_per_cluster, clusters))
        parts = []
        for k in range(int(cluster.max()) + 1):
            members = flat[cluster == k]
            prior = None if public is None else public.nearest(members.mean(0))
            parts.append(shrunk(Moments.of(members), prior, strength or Strength(), min(rank, flat.shape[1] - 1)))
        mean, basis, variance, rest = (torch.stack(column).to(images.dtype) for column in zip(*parts, strict=True))
        log_share = (torch.bincount(cluster).double() / len(flat)).log().to(images.dtype)
        channels, height, width = images.shape[1:]
        return cls(log_share, mean, basis, variance, rest, (channels, height, width))

    def nearest(self, mean: Tensor) -> "Gaussians":
        """Return the one cluster whose mean is nearest to `mean` [dimension]."""
        k = int((self.mean.double() - mean).square().sum(1).argmin())
        only = slice(k, k + 1)
        return Gaussians(
            torch.zeros_like(self.log_share[only]),
            self.mean[only],
            self.basis[only],
            self.variance[only],
            self.rest[only],
            self.shape,
        )

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p(x; sigma) [batch], fully normalized, for x [batch, channel, height, width], sigma [batch]."""
        with torch.autocast(x.device.type, enabled=False):
            centred = x.flatten(1) - self._centre
            return self._log_joint(centred, self._along(centred), sigma).logsumexp(0)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x], shaped as x [batch, channel, height, width], for sigma [batch]."""
        return self.explain(x, sigma)[1]

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x; sigma) [batch] and E[x_0 | x] (shaped as x), which share their projections."""
        log_joint, denoised = self.explain(x, sigma)
        return log_joint.logsumexp(0), denoised

    def explain(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return log share + log p(x | cluster; sigma) [cluster, batch] and E[x_0 | x] (shaped as x).

        In the precision of the stored tensors, also where an autocast would lower it.
        """
        with torch.autocast(x.device.type, enabled=False):
            centred = x.flatten(1) - self._centre
            along = self._along(centred)
            log_joint = self._log_joint(centred, along, sigma)
            return log_joint, self._denoised(centred, along, log_joint.softmax(0), sigma).reshape(x.shape)

    def draw_cluster(self, uniform: Tensor) -> Tensor:
        """Return a cluster [batch] drawn by its share, with a number in [0, 1) per image (float64); both on the CPU."""
        cumulative = self.log_share.double().exp().cpu().cumsum(0)
        return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(len(cumulative) - 1)

    def draw(self, noise: Tensor, cluster: Tensor, sigma: float) -> Tensor:
        """Draw x ~ p(x | cluster; sigma), shaped as `noise`.

        x is where the probability flow of the cluster brings noise from an endless level down to sigma:
        mean + (covariance + sigma^2)^(1/2) noise (Wang and Vastola 2024, eq. 12).

        Args:
            noise: standard normal numbers [batch, channel, height, width].
            cluster: [batch].
            sigma: the level, at least 0.
        """
        cluster, flat = cluster.to(noise.device), noise.flatten(1)
        along = torch.cat([part[None] @ self.basis[k] for part, k in zip(flat, cluster, strict=True)])
        rest, variance = (self.rest + sigma**2).sqrt()[cluster, None], (self.variance + sigma**2).sqrt()[cluster]
        inside = [self.basis[k] @ part for part, k in zip((variance - rest) * along, cluster, strict=True)]
        return (self.mean[cluster] + rest * flat + torch.stack(inside)).reshape(noise.shape)

    @cached_property
    def _centre(self) -> Tensor:
        """Return the mean of the means [dimension]: images and means are short once it is taken off, so sums of their
        squares lose little.
        """
        return self.mean.mean(0)

    @cached_property
    def _offset(self) -> Tensor:
        """Return each mean, as seen from the centre [cluster, dimension]."""
        return self.mean - self._centre

    @cached_property
    def _offset_along(self) -> Tensor:
        """Return each offset's coordinates in its own basis [cluster, 1, rank]."""
        return torch.bmm(self._offset[:, None], self.basis)

    def _along(self, centred: Tensor) -> Tensor:
        """Return the coordinates of x - mean in each basis [cluster, batch, rank] for x - centre [batch, dimension]."""
        return torch.bmm(centred.expand(len(self.mean), -1, -1), self.basis) - self._offset_along

    def _log_joint(self, centred: Tensor, along: Tensor, sigma: Tensor) -> Tensor:
        """Return log share + log p(x | cluster; sigma) [cluster, batch]."""
        noise = sigma.square()[None, :, None]
        variance, rest = self.variance[:, None, :] + noise, self.rest[:, None] + noise[..., 0]
        crossed, own = self._offset @ centred.T, self._offset.square().sum(1, keepdim=True)
        outside = centred.square().sum(1) - 2 * crossed + own - along.square().sum(2)
        return self.log_share[:, None] + _log_normal(outside, along, variance, rest, self.mean.shape[1])

    def _denoised(self, centred: Tensor, along: Tensor, share: Tensor, sigma: Tensor) -> Tensor:
        """Return sum_k share_k E[x_0 | x, cluster k] [batch, dimension]: a Wiener filter of each Gaussian.

        E[x_0 | x, k] = mean + gain_rest (x - mean) + basis (gain - gain_rest) basis^T (x - mean).
        """
        noise = sigma.square()[None, :, None]
        signal, rest = self.variance[:, None, :], self.rest[:, None, None]
        gain, gain_rest = signal / (signal + noise), rest / (rest + noise)
        outside = share * gain_rest[..., 0]
        denoised = self._centre + outside.sum(0)[:, None] * centred + (share - outside).T @ self._offset
        for coordinates, basis in zip(share[..., None] * (gain - gain_rest) * along, self.basis, strict=True):
            denoised = torch.addmm(denoised, coordinates, basis.T)
        return denoised

    def mixed_with(self, other: "Gaussians", share: float) -> "Gaussians":
        """Return the mixture (1 - share) p + share p_other, 0 < share < 1, of Gaussians of equal rank."""
        weighed = {"log_share": (self.log_share + math.log1p(-share), other.log_share + math.log(share))}
        theirs = other.tensors()
        pairs = {name: (tensor, theirs[name]) for name, tensor in self.tensors().items()} | weighed
        joined = {name: torch.cat([mine, their.to(mine)]) for name, (mine, their) in pairs.items()}
        return Gaussians.from_tensors(joined, self.shape)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Gaussians":
        """Return the same mixture on another device, or in another dtype; itself, if it is there already."""
        device, dtype = torch.device(device), dtype or self.mean.dtype
        if (self.mean.device, self.mean.dtype) == (device, dtype):
            return self
        moved = {name: tensor.to(device, dtype) for name, tensor in self.tensors().items()}
        return Gaussians.from_tensors(moved, self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is stored, by name."""
        names = ("log_share", "mean", "basis", "variance", "rest")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> "Gaussians":
        """Return the mixture that `tensors` came from."""
        return cls(**{name: tensors[name] for name in ("log_share", "mean", "basis", "variance", "rest")}, shape=shape)


def cluster_of(flat: Tensor, seed: int, clusters: int) -> Tensor:
    """Return the k-means cluster [n] of each row of `flat` [n, dimension]; one thread, so sums have one order."""
    if clusters <= 1:
        return torch.zeros(len(flat), dtype=torch.long)
    with threadpool_limits(1):
        means = KMeans(clusters, n_init=1, max_iter=50, random_state=seed % 2**32)
        labels = means.fit_predict(flat.numpy().astype(np.float32))
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1]).long()


def _log_normal(outside: Tensor, along: Tensor, variance: Tensor, rest: Tensor, dimension: int) -> Tensor:
    """Return the log density [cluster, batch] of rows whose distance from the mean is split by the basis.

    Args:
        outside: squared distance in the directions outside the basis [cluster, batch].
        along: coordinates in the basis [cluster, batch, rank], of this `variance` [cluster, batch, rank].
        rest: variance outside [cluster, batch].
        dimension: of the space.
    """
    square = (along.square() / variance).sum(2) + outside.clamp_min(0) / rest
    log_determinant = variance.log().sum(2) + (dimension - along.shape[2]) * rest.log()
    return -0.5 * (square + log_determinant + dimension * math.log(2 * math.pi))


@dataclass(frozen=True)
class Moments:
    """The first two moments of n images: their mean, and the covariance factor^T factor + floor I.

    Attributes:
        n: images, at least 0.
        mean: [dimension].
        factor: [row, dimension].
        floor: the variance that every direction has beside `factor`.
    """

    n: float
    mean: Tensor
    factor: Tensor
    floor: float

    @classmethod
    def of(cls, members: Tensor) -> "Moments":
        """Return the moments of `members` [n, dimension]."""
        mean = members.mean(0)
        return cls(len(members), mean, (members - mean) / math.sqrt(len(members)), 0.0)


def shrunk(
    moments: Moments, prior: Gaussians | None, strength: Strength, rank: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, basis, variance, rest of one Gaussian: maximum likelihood, or the posterior mode under `prior`."""
    if prior is None:
        return (moments.mean, *_low_rank(moments.factor, moments.floor, rank))
    n = moments.n
    mean, basis, variance, rest = (
        tensor[0].double() for tensor in (prior.mean, prior.basis, prior.variance, prior.rest)
    )
    total = strength.covariance + n
    offset = (moments.mean - mean) * math.sqrt(strength.mean * n / (strength.mean + n))
    spread = basis.T * (strength.covariance * (variance - rest)).clamp_min(0).sqrt()[:, None]
    factor = torch.cat([moments.factor * math.sqrt(n), offset[None], spread]) / math.sqrt(total)
    centre = (strength.mean * mean + n * moments.mean) / (strength.mean + n)
    return (centre, *_low_rank(factor, (float(rest) * strength.covariance + moments.floor * n) / total, rank))


def _low_rank(factor: Tensor, floor: float, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split factor^T factor + floor I, factor [row, dimension], into its first `rank` eigenvectors and the rest."""
    rows, dimension = factor.shape
    trace = factor.square().sum()
    if rows < dimension:
        values, left = torch.linalg.eigh(factor @ factor.T)
        kept = min(rank, rows)
        values = values.flip(0)[:kept].clamp_min(0)
        vectors = torch.linalg.qr(factor.T @ left.flip(1)[:, :kept])[0]
    else:
        values, right = torch.linalg.eigh(factor.T @ factor)
        kept = rank
        values, vectors = values.flip(0)[:kept].clamp_min(0), right.flip(1)[:, :kept]
    rest = (trace - values.sum()).clamp_min(0) / (dimension - kept)
    missing = rank - kept
    basis = torch.cat([vectors, vectors.new_zeros(dimension, missing)], 1)
    variance = torch.cat([values, rest.expand(missing)])
    return basis, variance + floor, rest + floor
