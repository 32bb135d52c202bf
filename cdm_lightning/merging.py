"""Closed forms add up: fine Gaussians of one source, or of many, merged into fewer and shrunk towards `public`.

A compartment keeps the maximum-likelihood Gaussians of small clusters, which are statistics of its images alone. Merged
by their moments they are the Gaussian that all their images together have, whoever owns them: for one cluster of each
source that is exactly the fit of the union (but for directions beyond the rank). What is merged is computed when a
store is opened, from the granted compartments, and never stored.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from cdm_lightning.gaussians import IMAGES_PER_CLUSTER, Gaussians, Moments, Strength, shrunk


def union_of(forms: Sequence[Gaussians], images: Sequence[float]) -> Gaussians:
    """Return the mixture sum_i (n_i / n) p_i of mixtures of equal rank, for the numbers n_i of images behind them."""
    total = sum(images)
    weighed = [form.log_share + math.log(n / total) for form, n in zip(forms, images, strict=True)]
    theirs = [form.tensors() for form in forms]
    joined = {name: torch.cat([tensors[name] for tensors in theirs]) for name in theirs[0]}
    return Gaussians.from_tensors(joined | {"log_share": torch.cat(weighed)}, forms[0].shape)


def groups_for(images: Sequence[int]) -> int:
    """Return how many Gaussians sources of so many images have together: one for 250 images, at least one for each."""
    return sum(max(n // IMAGES_PER_CLUSTER, 1) for n in images)


def images_behind(fine: Sequence[Gaussians], images: Sequence[int], group: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many images stand behind what several mixtures are merged into.

    Behind the part of one mixture stand its own images, and those of every other that shares a group with it.

    Args:
        fine: the mixtures.
        images: the number of each one's own images.
        group: of each cluster of them all.

    Returns:
        The different numbers of images [number], rising, and the share [group, number] of each group's images that are
        of mixtures with so many images behind them; rows sum to 1.
    """
    owner = torch.cat([torch.full((len(form.mean),), i) for i, form in enumerate(fine)])
    own = torch.tensor(images, dtype=torch.float64)
    held = _held(fine, images)
    mass = torch.zeros(len(fine), int(group.max()) + 1, dtype=torch.float64)
    mass.index_put_((owner, group), held, accumulate=True)
    shared = (mass > 0).double()
    behind = torch.mv(((shared @ shared.T) > 0).double(), own)
    numbers, place = behind.unique(return_inverse=True)
    share = torch.zeros(mass.shape[1], len(numbers), dtype=torch.float64).index_add(1, place, mass.T)
    return numbers, share / share.sum(1, keepdim=True)


def groups_of(fine: Gaussians, groups: int) -> Tensor:
    """Return the group [cluster], of at most `groups`, that each fine cluster is merged into.

    By k-means on the means, weighed by their shares; one thread and a fixed seed, so equal input gives equal groups.
    """
    if groups >= len(fine.mean):
        return torch.arange(len(fine.mean))
    with threadpool_limits(1):
        means = KMeans(groups, n_init=4, random_state=0)
        share = fine.log_share.double().exp().cpu().numpy()
        labels = means.fit_predict(fine.mean.double().cpu().numpy(), sample_weight=share)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1]).long()


def _held(fine: Sequence[Gaussians], images: Sequence[int]) -> Tensor:
    """Return the numbers of images [cluster] of all clusters of several mixtures."""
    return torch.cat([n * form.log_share.double().exp().cpu() for n, form in zip(images, fine, strict=True)])


def images_in(fine: Sequence[Gaussians], images: Sequence[int], group: Tensor) -> Tensor:
    """Return the numbers of images [group] in what several mixtures are merged into; see `images_behind`."""
    held = _held(fine, images)
    return torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, held)


def merged(
    fine: Gaussians,
    images: int | Tensor,
    group: Tensor,
    public: Gaussians | None = None,
    strength: Strength | None = None,
) -> Gaussians:
    """Return the closed form of images from their fine Gaussians: merged by moments, shrunk, of equal rank.

    Args:
        fine: maximum-likelihood Gaussians of clusters of these images.
        images: their number; or those of each group [group], where the shares of `fine` are others.
        group: [cluster], the Gaussian of the result that each fine cluster becomes part of; see `groups_of`.
        public: where given, each group is shrunk towards its nearest cluster by a normal-inverse-Wishart prior.
        strength: of that prior, in samples.
    """
    share = fine.log_share.double().exp()
    rank = fine.basis.shape[2]
    parts = []
    for k in range(int(group.max()) + 1):
        whole = float(share[group == k].sum())
        count = float(images[k]) if isinstance(images, Tensor) else whole * images
        moments = _merged_moments(fine, share, (group == k).nonzero()[:, 0], count)
        prior = None if public is None else public.nearest(moments.mean)
        parts.append((share[group == k].sum().log(), *shrunk(moments, prior, strength or Strength(), rank)))
    log_share, mean, basis, variance, rest = (torch.stack(column).to(fine.mean) for column in zip(*parts, strict=True))
    return Gaussians(log_share, mean, basis, variance, rest, fine.shape)


def _merged_moments(fine: Gaussians, share: Tensor, members: Tensor, images: float) -> Moments:
    """Return the moments of the mixture of some clusters, which are of `images` images."""
    weight = share[members] / share[members].sum()
    means = fine.mean[members].double()
    mean = weight @ means
    excess = (fine.variance[members] - fine.rest[members, None]).double().clamp_min(0)
    spread = fine.basis[members].double() * (weight[:, None] * excess).sqrt()[:, None, :]
    between = (means - mean) * weight.sqrt()[:, None]
    factor = torch.cat([spread.transpose(1, 2).flatten(0, 1), between])
    return Moments(images, mean, factor, float(weight @ fine.rest[members].double()))
