"""A step of DP-SGD on what is trained for one source (Abadi et al. 2016, arXiv 1607.00133).

The gradient of every image alone is cut to norm C, so adding or removing an image moves their sum by at most C; normal
noise of deviation `multiplier` C is added to every number, and the sum is divided by the number of images that a step
is expected to have: the true number is not released. Several noise draws of an image are averaged before its gradient
is cut: they cost no privacy (Dockhorn et al. 2023, arXiv 2210.09929, "noise multiplicity"). What is drawn for an image
depends on its pixels and the step alone: if it depended on its place in a batch, one image less would change the
gradients of the others.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.secret_noise import SecretNoise, snapped
from cdm_lightning.seeding import generator

Losses = Callable[[Tensor], Tensor]  # from a copy of the tokens for each image [n, ...] to the loss of each image [n]


@dataclass(frozen=True)
class PrivateSteps:
    """How a prompt is trained under differential privacy, all of it known before the first step.

    Attributes:
        count: number of steps.
        rate: the probability of each image to be in a step.
        expected: images of a step, `rate` times their released number.
        multiplier: deviation of the noise, in clipping norms.
        clipping_norm: C.
        draws: noise draws of each image in a step.
        together: images that go through the network at once.
        secret: what choice and noise are made of.
        named: all that the steps depend on; see `SecretNoise`.
        epsilon: what is spent after so many steps, with all that was released before; the same for all images.
    """

    count: int
    rate: float
    expected: float
    multiplier: float
    clipping_norm: float
    draws: int
    together: int
    secret: bytes
    named: Mapping[str, str | int | float]
    epsilon: Callable[[int], float]

    def chosen(self, images: int, step: int) -> Tensor:
        """Return which images [n] are in a step, bool: each with probability `rate`, independently of all else."""
        return self._stream("choice", step).uniform(images) < self.rate

    def generators(self, images: Tensor, step: int) -> list[torch.Generator]:
        """Return what draws the levels and the noises of each image uint8 [n, channel, height, width] of a step."""
        own = self._stream("draws", step).uniform(1).numpy().tobytes().hex()
        digests = [hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest() for image in images]
        return [generator(own, digest) for digest in digests]

    def released(self, summed: Tensor, step: int) -> Tensor:
        """Return the noised mean gradient of a step, shaped as `summed`, the float64 sum of cut gradients."""
        deviation = self.multiplier * self.clipping_norm
        noise = self._stream("noise", step).normal(summed.numel()).reshape(summed.shape)
        return snapped(summed + deviation * noise, deviation) / self.expected

    def _stream(self, purpose: str, step: int) -> SecretNoise:
        if not 0 <= step < self.count:
            raise RuntimeError(f"step {step} is outside the {self.count} steps that the privacy budget pays for")
        return SecretNoise(self.secret, {**self.named, "purpose": purpose, "step": step})


def per_sample_gradients(tokens: Tensor, images: int, losses: Losses) -> Tensor:
    """Return the gradient of every image's own loss [n, *tokens.shape], by one backward pass.

    The tokens are repeated for each image, so the sum of the losses has a gradient for each copy. Exact, but for the
    rounding of float32, as long as the images of a batch do not meet in the network: with BatchNorm they would.
    """
    copies = tokens.detach().expand(images, *tokens.shape).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(losses(copies).sum(), copies)
    return gradients


def norms(tokens: Tensor, parts: Iterable[tuple[int, Losses]]) -> Tensor:
    """Return the norm of the gradient of every image, [n], float64; see `summed_gradient`."""
    found = [per_sample_gradients(tokens, images, losses).flatten(1).double().norm(dim=1) for images, losses in parts]
    return torch.cat(found)


def clipped(gradients: Tensor, norm: float) -> Tensor:
    """Return gradients [n, ...] cut to a norm, float64, on the CPU; one that is no number becomes 0, as it has none."""
    flat = gradients.flatten(1).cpu().double()
    length = flat.norm(dim=1, keepdim=True)
    cut = torch.where(length.isfinite(), flat / (length / norm).clamp_min(1), torch.zeros(()).to(flat))
    return cut.reshape(gradients.shape)


def summed_gradient(tokens: Tensor, parts: Iterable[tuple[int, Losses]], norm: float) -> Tensor:
    """Return the float64 sum of the cut gradients of images, shaped as `tokens`; of none, 0.

    Args:
        tokens: what is trained.
        parts: of the images of a step: how many, and their losses.
        norm: what each gradient is cut to.
    """
    total = torch.zeros(tokens.shape, dtype=torch.float64)
    for images, losses in parts:
        total += clipped(per_sample_gradients(tokens, images, losses), norm).sum(0)
    return total
