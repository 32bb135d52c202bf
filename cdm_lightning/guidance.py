"""Classifier-free guidance (Ho and Salimans 2022) of a composed model: D_g = D_u + g (D_c - D_u).

D_c is the model of one class, D_u the model of everything; each is composed of its own sources with its own weights.
For g other than 0 and 1 the guided law is no mixture of anything, and no noised version of a law: it is never exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser, Denoiser, Trajectory
from cdm_lightning.errors import BadInput


def check_guidance(guidance: float) -> None:
    """Raise BadInput unless the strength of guidance is a finite number of at least 0."""
    if not (math.isfinite(guidance) and guidance >= 0):
        raise BadInput(f"--guidance is {guidance}; expected a number of at least 0: 1 is the class as it is")


def extrapolated(conditional: Denoiser, unconditional: Denoiser, guidance: float, x: Tensor, sigma: Tensor) -> Tensor:
    """Return D_u + g (D_c - D_u) at x [batch, ...], sigma [batch]; at 0 and 1 one of them, bit for bit."""
    if guidance == 1:
        return conditional(x, sigma)
    free = unconditional(x, sigma)
    return free if guidance == 0 else free + guidance * (conditional(x, sigma) - free)


@dataclass(frozen=True)
class GuidedDenoiser:
    """A composed model that is drawn towards one class; as a callable it is stateless, as its two branches are.

    Weights, and so credits, are those of the class: p(i | c) and the evidence of the class in each source.

    Attributes:
        conditional: D_c, of the sources that have the class, under it.
        unconditional: D_u, of all chosen sources.
        guidance: g, at least 0; 0 is D_u, 1 is D_c.

    Raises:
        BadInput: `guidance` is negative or no finite number.
        ValueError: the branches switch to the network at different levels.
    """

    conditional: ComposedDenoiser
    unconditional: ComposedDenoiser
    guidance: float

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        if self.conditional.sigma_switch != self.unconditional.sigma_switch:
            raise ValueError(f"switches differ: {self.conditional.sigma_switch}, {self.unconditional.sigma_switch}")

    @property
    def sources(self) -> list[str]:
        """Return the sources that have the class, in the order of `weights`."""
        return self.conditional.sources

    @property
    def sigma_switch(self) -> float:
        """Return the level at which both branches switch."""
        return self.conditional.sigma_switch

    def weights(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the posterior of the source under the class, w_i(x; sigma | c) [source, batch]."""
        return self.conditional.weights(x, sigma)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D_g(x; sigma), shaped as x, for sigma [batch]."""
        return extrapolated(self.conditional, self.unconditional, self.guidance, x, sigma)

    def start(self, seed: int, indices: Sequence[int]) -> "GuidedTrajectory":
        """Return the callable of one trajectory of the images `indices`; its draws depend on (seed, k) alone."""
        return GuidedTrajectory(self, seed, indices)


class GuidedTrajectory:
    """The trajectories of both branches through the same x; each follows the source that it drew from its own weights.

    Both draw by the same uniform number of (seed, k): it has the right law in each, and where their weights agree they
    follow the same source, so that guidance tells classes apart rather than sources.
    """

    def __init__(self, guided: GuidedDenoiser, seed: int, indices: Sequence[int]) -> None:
        self.guidance = guided.guidance
        self.conditional: Trajectory = guided.conditional.start(seed, indices)
        self.unconditional: Trajectory = guided.unconditional.start(seed, indices)

    @property
    def jump(self) -> float:
        """Return the level at which both branches may go on with another denoiser; see `Trajectory`."""
        return self.conditional.jump

    @property
    def drawn(self) -> Tensor | None:
        """Return the index [batch] into `sources` of what the conditional branch follows, or None (yet)."""
        return self.conditional.drawn

    def at_switch(self, noise: Tensor) -> Tensor:
        """Raise BadInput: nobody knows what the guided model samples from at the switch."""
        raise BadInput("--start switch has no guidance, whose law at the switch is not known: leave one of them out")

    def on_step(self, x: Tensor, sigma: Tensor) -> None:
        """Let each branch draw its source, if it has to."""
        self.conditional.on_step(x, sigma)
        self.unconditional.on_step(x, sigma)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D_g(x; sigma), shaped as x, of the sources that the branches follow."""
        return extrapolated(self.conditional, self.unconditional, self.guidance, x, sigma)
