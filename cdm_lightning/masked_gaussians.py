"""The closed form of an image of which some pixels are less noised than others."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdm_lightning.gaussians import Gaussians


@dataclass(frozen=True)
class MaskedGaussians:
    """A mixture of Gaussians, seen under one noise level in the known pixels and another one in the rest.

    Given a cluster, z has the covariance A + W W^T with a diagonal A = level^2 + rest and W = basis sqrt(variance -
    rest); Woodbury's identity inverts it in the cluster's few directions.

    Attributes:
        gaussians: the law of x_0.
        known: bool [channel, height, width].
    """

    gaussians: Gaussians
    known: Tensor

    def posterior(self, z: Tensor, level_known: float, level: float) -> tuple[Tensor, Tensor]:
        """Return log p(z) [batch], fully normalized, and E[x_0 | z], shaped as z.

        With equal levels these are `Gaussians.posterior`. At level 0, pixels are given as they are.

        Args:
            z: x_0 + noise [batch, channel, height, width].
            level_known: level of the noise in the known pixels.
            level: level of the noise in the others.
        """
        mixture, flat = self.gaussians, z.flatten(1)
        noise = torch.where(self.known.flatten(), flat.new_tensor(level_known**2), flat.new_tensor(level**2))
        diagonal = (noise + mixture.rest[:, None])[:, None]
        centred = flat - mixture.mean[:, None]
        weighted = centred / diagonal
        along = self._scale * torch.bmm(weighted, mixture.basis).double()
        factor = self._factor(level_known, level)
        solved = torch.cholesky_solve(along.mT, factor).mT
        square = (centred * weighted).sum(2).double() - (along * solved).sum(2)
        log_determinant = diagonal.double().log().sum(2) + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        log_normal = -0.5 * (square + log_determinant + flat.shape[1] * math.log(2 * math.pi))
        log_joint = mixture.log_share[:, None] + log_normal
        inverse = weighted - torch.bmm((self._scale * solved).to(z), mixture.basis.mT) / diagonal
        denoised = flat - noise * (log_joint.softmax(0).to(z)[..., None] * inverse).sum(0)
        return log_joint.logsumexp(0).to(z), denoised.reshape(z.shape)

    def _factor(self, level_known: float, level: float) -> Tensor:
        """Return the Cholesky factor [cluster, rank, rank] of I + W^T A^-1 W."""
        rest = self.gaussians.rest.double()[:, None, None]
        known, unknown = self._overlaps
        inner = self._scale.mT * (known / (level_known**2 + rest) + unknown / (level**2 + rest)) * self._scale
        factor: Tensor = torch.linalg.cholesky(
            inner + torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device)
        )
        return factor

    @cached_property
    def _scale(self) -> Tensor:
        """Return sqrt(variance - rest) [cluster, 1, rank]."""
        excess = self.gaussians.variance - self.gaussians.rest[:, None]
        return excess.clamp_min(0).double().sqrt()[:, None]

    @cached_property
    def _overlaps(self) -> tuple[Tensor, Tensor]:
        """Return basis^T basis [cluster, rank, rank] over the known pixels, and over the others."""
        mask, basis = self.known.flatten(), self.gaussians.basis
        known, unknown = (torch.bmm(part.mT, part).double() for part in (basis[:, mask], basis[:, ~mask]))
        return known, unknown
