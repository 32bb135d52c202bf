"""Sums over features of images: all that a Frechet distance needs of them, additive over parts."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureSums:
    """Number, sum and outer sum of features, float64; the sums of a union of images are the sums of its parts, added.

    Attributes:
        n: number of images.
        total: sum of their features, [dimension].
        outer: sum of the outer products of their features with themselves, [dimension, dimension].
    """

    n: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureSums":
        """Return the sums of features [n, dimension]; of none, they are zero."""
        exact = features.to(torch.float64)
        return cls(len(features), exact.sum(0), exact.T @ exact)

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        """Return the sums of both together."""
        return FeatureSums(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def mean(self) -> Tensor:
        """Return the mean of the features, [dimension]; not a number if there are none."""
        return self.total / self.n

    def covariance(self) -> Tensor:
        """Return the unbiased covariance of the features, [dimension, dimension]; at least two images."""
        return (self.outer - torch.outer(self.total, self.total) / self.n) / (self.n - 1)
