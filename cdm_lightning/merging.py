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


def images_behind(fine: Sequence[Gaussians], images: Sequence[int], group: Tensor) -> list[int]:
    """Return, for each of several mixtures that are merged, how many images stand behind its part of the result.

    These are its own, and those of every other that shares a group with it; `group` is that of each
    cluster of them all.
    """
    owner = torch.cat([torch.full((len(form.mean),), i) for i, form in enumerate(fine)])
    shared = torch.zeros(len(fine), int(group.max()) + 1, dtype=torch.bool)
    shared[owner, group] = True
    together = (shared.double() @ shared.double().T) > 0
    return (together.double() @ torch.tensor(images, dtype=torch.float64)).long().tolist()


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


def merged(
    fine: Gaussians, images: int, group: Tensor, public: Gaussians | None = None, strength: Strength | None = None
) -> Gaussians:
    """Return the closed form of `images` images from their fine Gaussians: merged by moments, shrunk, of equal rank.

    Args:
        fine: maximum-likelihood Gaussians of clusters of these images.
        images: their number.
        group: [cluster], the Gaussian of the result that each fine cluster becomes part of; see `groups_of`.
        public: where given, each group is shrunk towards its nearest cluster by a normal-inverse-Wishart prior.
        strength: of that prior, in samples.
    """
    share = fine.log_share.double().exp()
    rank = fine.basis.shape[2]
    parts = []
    for k in range(int(group.max()) + 1):
        moments = _merged_moments(fine, share, (group == k).nonzero()[:, 0], images)
        prior = None if public is None else public.nearest(moments.mean)
        parts.append((share[group == k].sum().log(), *shrunk(moments, prior, strength or Strength(), rank)))
    log_share, mean, basis, variance, rest = (torch.stack(column).to(fine.mean) for column in zip(*parts, strict=True))
    return Gaussians(log_share, mean, basis, variance, rest, fine.shape)


def _merged_moments(fine: Gaussians, share: Tensor, members: Tensor, images: int) -> Moments:
    """Return the moments of the mixture of some clusters of a mixture of `images` images."""
    whole = share[members].sum()
    weight = share[members] / whole
    means = fine.mean[members].double()
    mean = weight @ means
    excess = (fine.variance[members] - fine.rest[members, None]).double().clamp_min(0)
    spread = fine.basis[members].double() * (weight[:, None] * excess).sqrt()[:, None, :]
    between = (means - mean) * weight.sqrt()[:, None]
    factor = torch.cat([spread.transpose(1, 2).flatten(0, 1), between])
    return Moments(float(whole * images), mean, factor, float(weight @ fine.rest[members].double()))
