"""What the frozen backbone sees in a noised image, the same for every source: features for the heads of `ratio`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from cdm_lightning.denoiser import Preconditioning, guide_of, per_image
from cdm_lightning.evidence.ratio import NoisedFeatures, Whitening
from cdm_lightning.gaussians import Gaussians


@runtime_checkable
class Featured(Protocol):
    """A backbone that can say what it sees."""

    def features(self, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
        """Return features [batch, feature], without a prompt; the arguments are those of `Backbone.forward`."""


@dataclass(frozen=True)
class BackboneFeatures:
    """Features of x by one pass of the network, or of its first half, whatever the number of sources.

    A guided backbone is guided by the closed form of all of `public`, so that no source has a part in them.

    Attributes:
        backbone: frozen.
        guide: `public`'s closed form, or None if the backbone is not guided.
        preconditioning: what the network was trained with.
        whitening: fitted on `public`, or None for the bare features.
    """

    backbone: Featured
    guide: Gaussians | None
    preconditioning: Preconditioning
    whitening: Whitening | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> NoisedFeatures:
        """Return the features of x [batch, channel, height, width] at sigma [batch]."""
        c_in, time = per_image(self.preconditioning.c_in(sigma), x), self.preconditioning.c_noise(sigma)
        guide = None if self.guide is None else guide_of(x, sigma, self.guide.denoise(x, sigma))
        value = self.backbone.features(c_in * x, time, guide=guide)
        noised = NoisedFeatures(value, sigma)
        return noised if self.whitening is None else self.whitening(noised)
