"""D(x; sigma) = sum_i w_i(x; sigma) D_i(x; sigma): weights, strategies, and the state of one trajectory."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from cdm_lightning.denoiser import per_image, single
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.evidence import Evidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.seeding import image_generators, uniform
from cdm_lightning.strategy import Strategy

Denoiser = Callable[[Tensor, Tensor], Tensor]
NEGLIGIBLE = 1e-12  # a pair (image, source) of less weight is not evaluated


def mixture_weights(log_evidence: Tensor, log_prior: Tensor) -> Tensor:
    """Return w = softmax_i(log lambda_i + log p_i(x; sigma)) [source, batch] (Golatkar et al. 2023, eq. 5).

    Args:
        log_evidence: [source, batch], up to a constant that is common to all sources.
        log_prior: [source], up to a constant; -inf leaves a source out.
    """
    return (log_evidence + log_prior[:, None]).softmax(dim=0)


@runtime_checkable
class RowDenoiser(Protocol):
    """Denoisers that can evaluate many (image, source) pairs as rows of one batch."""

    def rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return D_source(x; sigma) row by row: x [row, ...], sigma [row], source [row] (index in mapping order)."""


@runtime_checkable
class DraftDenoiser(Protocol):
    """Denoisers that can finish a mixture of their drafts in one pass of a shared network."""

    @property
    def obstacle(self) -> str | None:
        """What keeps these ones from it, in words; None if nothing does."""

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D guided by the draft of all sources, shaped as x, for one sigma [batch] for all."""


class ComposedDenoiser:
    """The denoiser of the union of sources, composed of the denoisers of each.

    As a callable it is stateless and returns sum_i w_i D_i: with posterior weights, or as `uniform` and `draft` say.
    `routed` and `assign` follow one source per image; `start` gives their trajectory.

    Args:
        denoisers: D_i by source; anybody's callables (x [batch, ...], sigma [batch]) -> denoised, or a mapping that
            also is a `RowDenoiser`.
        evidence: by source.
        prior: lambda_i by source, positive; scaled to sum 1.
        strategy: `routed`: mixed above `sigma_switch`, there one source is drawn from the posterior and held.
            `assign`: one source is drawn from the prior at the start and held. `posterior`: mixed at every level.
            `draft`: the draft of all sources together, finished by one network pass; not exact. `uniform`: the naive
            average.
        sigma_switch: the level at which `routed` draws.
        closed_form: what all sources together are at and above `sigma_switch`, if that is one known mixture; its
            denoiser is sum_i w_i D_i, but no weight has to be computed.
        owner: [cluster] index of the source that each cluster of `closed_form` is of, if each is of one.

    Raises:
        BadInput: unknown strategy, or one that these denoisers cannot follow.
        ValueError: the three mappings do not name the same sources, or the prior is not positive.
    """

    def __init__(
        self,
        denoisers: Mapping[str, Denoiser],
        evidence: Mapping[str, Evidence],
        prior: Mapping[str, float],
        strategy: Strategy = "routed",
        sigma_switch: float = 1.0,
        closed_form: Gaussians | None = None,
        owner: Tensor | None = None,
    ) -> None:
        if not set(denoisers) == set(evidence) == set(prior) or not denoisers:
            raise ValueError(
                f"sources differ: denoisers {list(denoisers)}, evidence {list(evidence)}, prior {list(prior)}"
            )
        if min(prior.values()) <= 0:
            raise ValueError(f"every prior must be positive, but got {dict(prior)}")
        if strategy not in get_args(Strategy):
            names = get_args(Strategy)
            raise BadInput(f"unknown strategy '{strategy}': expected one of {names}{did_you_mean(strategy, names)}")
        if strategy == "draft" and (why := _obstacle(denoisers)) is not None:
            raise BadInput(
                f"strategy 'draft' finishes one draft for all sources, but {why}; choose 'routed' or 'assign'"
            )
        self.denoisers, self.evidence = denoisers, evidence
        self.sources = list(denoisers)
        shares = torch.tensor([prior[source] for source in self.sources], dtype=torch.float64)
        self.prior = shares / shares.sum()
        self.strategy, self.sigma_switch = strategy, single(sigma_switch)
        self.closed_form, self.owner = closed_form, owner

    def weights(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the posterior w_i(x; sigma) [source, batch], in the order of `sources`."""
        given = () if label is None else (label,)
        evidence = torch.stack([self.evidence[source].log_density(x, sigma, *given) for source in self.sources])
        return mixture_weights(evidence, self.prior.log().to(evidence))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; sigma), shaped as x, for sigma [batch]."""
        if self.strategy == "uniform":
            return self.mixed(x, sigma, x.new_full((len(self.sources), len(x)), 1 / len(self.sources)))
        if self.strategy == "draft" and isinstance(self.denoisers, DraftDenoiser):
            return self.denoisers.finish(x, sigma)
        if self.closed_form is not None and float(sigma.min()) >= self.sigma_switch:
            return self.closed_form.denoise(x, sigma)
        return self.mixed(x, sigma, self.weights(x, sigma))

    def mixed(self, x: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
        """Return sum_i w_i D_i(x; sigma) for weights [source, batch]; negligible pairs are not evaluated."""
        source, image = (~(weights <= NEGLIGIBLE)).nonzero(as_tuple=True)  # a NaN is kept, so that it shows
        rows = self.rows(x[image], sigma[image], source)
        return torch.zeros_like(x).index_add(0, image, per_image(weights[source, image], x).to(x.dtype) * rows)

    def rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        """Return D_source(x; sigma) row by row: x [row, ...], sigma [row], source [row]."""
        if isinstance(self.denoisers, RowDenoiser):
            return self.denoisers.rows(x, sigma, source)
        denoised = torch.empty_like(x)
        for i, name in enumerate(self.sources):
            mine = source == i
            if mine.any():
                denoised[mine] = self.denoisers[name](x[mine], sigma[mine])
        return denoised

    def alone(self, source: str) -> "ComposedDenoiser":
        """Return the denoiser of one source, composed of itself."""
        denoiser, evidence = {source: self.denoisers[source]}, {source: self.evidence[source]}
        return ComposedDenoiser(denoiser, evidence, {source: 1.0}, "posterior", self.sigma_switch)

    def start(self, seed: int, indices: Sequence[int]) -> "Trajectory":
        """Return the callable of one trajectory of the images `indices`; its draws depend on (seed, k) alone."""
        return Trajectory(self, seed, indices)


def _obstacle(denoisers: Mapping[str, Denoiser]) -> str | None:
    """Return what keeps denoisers from finishing one draft of all, in words."""
    return denoisers.obstacle if isinstance(denoisers, DraftDenoiser) else "these denoisers have no drafts"


class Trajectory:
    """A denoiser with a memory: which source each image follows.

    Pass `on_step` to the sampler, so that `routed` draws at the start of the step that begins at the switch; without
    it the draw happens at the first evaluation below the switch, one half step late.

    Attributes:
        drawn: [batch] index of the source that each image follows, or None where none was drawn (yet).
        jump: the first step that starts at this level or below goes on with another denoiser: the switch of `routed`.
    """

    def __init__(self, composed: ComposedDenoiser, seed: int, indices: Sequence[int]) -> None:
        self.composed = composed
        self.jump = composed.sigma_switch if composed.strategy == "routed" else math.inf
        self._seed, self._indices = seed, indices
        self._uniform = uniform(image_generators(seed, indices, "source"))
        self.drawn: Tensor | None = None
        if composed.strategy == "assign":
            self.drawn = draw_source(composed.prior[:, None].expand(-1, len(indices)), self._uniform)

    def at_switch(self, noise: Tensor) -> Tensor:
        """Return x ~ p(x; sigma_switch), shaped as `noise`, without a step: the law that a trajectory arrives with.

        `routed` draws x and its source together, which has the law of x first and then a source by its weights, and so
        computes none.

        Args:
            noise: standard normal numbers [batch, ...].

        Raises:
            BadInput: the law is not known: the strategy mixes no closed forms above the switch, or there is no switch.
        """
        law, switch = self.composed.closed_form, self.composed.sigma_switch
        if law is None or math.isinf(switch):
            raise BadInput(
                "--start switch needs the law of the composed model at the switch: choose the strategy routed, draft "
                "or posterior, and no --sigma_switch inf"
            )
        cluster = law.draw_cluster(uniform(image_generators(self._seed, self._indices, "cluster")))
        if self.composed.strategy == "routed" and self.composed.owner is not None:
            self.drawn = self.composed.owner[cluster]
        return law.draw(noise, cluster, switch)

    def on_step(self, x: Tensor, sigma: Tensor) -> None:
        """Draw each image's source if this step starts at the switch or below it, and none was drawn."""
        if self.composed.strategy == "routed" and self.drawn is None and float(sigma[0]) <= self.composed.sigma_switch:
            self.drawn = draw_source(self.composed.weights(x, sigma), self._uniform)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; sigma), shaped as x, of the source that each image follows, or of the mixture before a draw."""
        if float(sigma[0]) < self.composed.sigma_switch:
            self.on_step(x, sigma)
        if self.drawn is None:
            return self.composed(x, sigma)
        return self.composed.rows(x, sigma, self.drawn.to(x.device))


def draw_source(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return a source [batch] per image, drawn from `weights` [source, batch] by inversion of their cumulative sum.

    Args:
        weights: of any positive sum.
        uniform: one number in [0, 1) per image [batch], float64, on the CPU; so is the result.
    """
    cumulative = weights.double().cpu().cumsum(0).T.contiguous()
    target = (uniform * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(len(weights) - 1)
