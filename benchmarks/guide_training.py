"""Guided networks trained on `public` in other ways: how it is cut, what the drafts have seen, what F is shown."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.guide_inputs import KNOWLEDGE, beside, widen
from benchmarks.guide_parts import BOTH, take_parts
from benchmarks.training import train_network
from cdm_lightning.backbone import Backbone, UViT
from cdm_lightning.denoiser import EDM, SIGMA_MAX, SIGMA_MIN, Network, denoise, guided_denoise, per_image
from cdm_lightning.drafts import DraftError, Drafts
from cdm_lightning.gaussians import MOST_CLUSTERS, Gaussians, Strength, cluster_of
from cdm_lightning.loss import denoising_loss, draw_sigma
from cdm_lightning.pseudo_sources import PRIOR_IMAGES, PseudoSources, folds_of
from cdm_lightning.public import fit_strength
from cdm_lightning.seeding import generator, stable_hash

EVERY_CLASS, EVERYTHING = "classes", "one"


@dataclass(frozen=True)
class Way:
    """One way to train a guided network.

    Attributes:
        cut: of `public` into pseudo-sources: `classes`, `one`, `K clusters`, or `K clusters of each class`.
        sizes: numbers of images behind the drafts, beside all of a pseudo-source.
        rank: directions of a closed form's Gaussians.
        clusters: of a closed form, at most.
        in_fold: whether the drafts have seen the images that they guide.
        residual: whether F is shown (x - G) / sigma beside the draft G.
        known: what else of the closed form F is shown, in units of the draft's error: a key of
            `guide_inputs.KNOWLEDGE`, or empty for nothing.
        blind: share of the images that F is shown no draft of; there it is a plain EDM network.
        parts: of the network; see `guide_parts`.
        seed: of everything random in training.
    """

    cut: str = EVERY_CLASS
    sizes: tuple[int, ...] = (20, 100, 500)
    rank: int = 64
    clusters: int = MOST_CLUSTERS
    in_fold: bool = False
    residual: bool = True
    known: str = ""
    blind: float = 0.0
    parts: str = BOTH
    seed: int = 0


@dataclass(frozen=True)
class PublicImages:
    """The training images of `public`: [n, channel, height, width] in [-1, 1], with keys and labels."""

    images: Tensor
    keys: tuple[str, ...]
    labels: tuple[str, ...]


class InFold(PseudoSources):
    """Pseudo-sources whose closed forms see every image, also those that they guide."""

    def outside_fold(self, group: int, fold: int, size: int) -> Tensor:
        """Return `size` images of a group, chosen by hash of the key, whatever their fold."""
        rows = (self.group == group).nonzero()[:, 0]
        return self.images[self._hashed(rows, f"draft-{size}")[:size]]


def groups(way: Way, public: PublicImages) -> Tensor:
    """Return the pseudo-source [n] of every image."""
    names = sorted(set(public.labels))
    label = torch.tensor([names.index(name) for name in public.labels])
    if way.cut == EVERYTHING:
        return torch.zeros_like(label)
    if way.cut == EVERY_CLASS:
        return label
    clusters, _, within = way.cut.partition(" clusters")
    flat = public.images.flatten(1).double()
    if not within:
        return cluster_of(flat, stable_hash("groups"), int(clusters))
    group, first = torch.empty_like(label), 0
    for number in range(len(names)):
        mine = label == number
        group[mine] = first + cluster_of(flat[mine], stable_hash("groups", number), int(clusters))
        first = int(group[mine].max()) + 1
    return group


@dataclass(frozen=True)
class Guide:
    """What the drafts of one way are made of, for training and for sources that come later."""

    way: Way
    drafts: Drafts
    error: DraftError
    closed_form: Gaussians
    strength: Strength

    @classmethod
    def fit(cls, way: Way, public: PublicImages) -> "Guide":
        """Fit all closed forms on `public`, as a fit does, but cut and seen in this way."""
        kind = InFold if way.in_fold else PseudoSources
        pseudo = kind(public.images, public.keys, groups(way, public), folds_of(public.keys))
        priors = [
            Gaussians.fit(pseudo.without_group(group), seed=group, rank=way.rank, clusters=way.clusters)
            for group in pseudo.groups()
        ]
        strength = fit_strength(pseudo, priors, 0, way.rank)
        largest = max(pseudo.sizes())
        sizes = [size for size in way.sizes if size < largest] + [largest]
        drafts = Drafts.fit(pseudo, priors, strength, way.rank, sizes, way.clusters)
        some = torch.randperm(len(public.keys), generator=generator(0, "prior"))[: 2 * PRIOR_IMAGES]
        closed_form = Gaussians.fit(public.images[some], seed=0, rank=way.rank, clusters=way.clusters)
        return cls(way, drafts, drafts.error(0), closed_form, strength)

    def of_source(self, images: Tensor) -> Gaussians:
        """Return the closed form of a source."""
        return Gaussians.fit(
            images,
            seed=0,
            public=self.closed_form,
            strength=self.strength,
            rank=self.way.rank,
            clusters=self.way.clusters,
        )

    def shown(self, network: Network) -> Network:
        """Return the network, which is shown of a guide [batch, 2 channel, ...] what this way shows."""
        return network if self.way.residual else partial(_without_residual, network)

    def finish(self, network: Network, form: Gaussians, n: int, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D of a source whose closed form is of n images: its draft, finished by the network."""
        error = self.error.at(sigma, torch.full_like(sigma, n))
        known = KNOWLEDGE[self.way.known](form, x, sigma) if self.way.known else None
        return self.finished(network, x, sigma, form.denoise(x, sigma), error, known)

    def finished(
        self, network: Network, x: Tensor, sigma: Tensor, draft: Tensor, error: Tensor, known: Tensor | None
    ) -> Tensor:
        """Return D: drafts with this error [batch], finished by the network, which is shown what else is known."""
        shown = self.shown(network)
        if known is not None:
            shown = beside(shown, known / per_image(error, known))
        return guided_denoise(EDM(), shown, x, sigma, draft, error)


def _without_residual(network: Network, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
    assert guide is not None
    draft, residual = guide.chunk(2, dim=1)
    return network(x, time, guide=torch.cat([draft, torch.zeros_like(residual)], dim=1))


def unguided(network: Network, x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
    """Return F where no draft is shown: zeros stand in its place."""
    return network(x, time, guide=torch.cat([torch.zeros_like(x)] * 2, dim=1))


def train(network: Backbone, guide: Guide, *, steps: int, rate: float, batch: int) -> None:
    """Train every parameter, by the same loss, noise law, optimizer, schedule and EMA as a fit does."""
    way, pseudo = guide.way, guide.drafts.pseudo
    if isinstance(network, UViT):
        take_parts(network, way.parts)
    if way.known:
        widen(network)
    network.initialize(generator(way.seed, "guides", "start"))

    def loss_at(step: int) -> Tensor:
        draw = generator(way.seed, "guides", "train", step)
        rows = torch.randint(len(pseudo.keys), (batch,), generator=draw)
        sigma = draw_sigma(batch, SIGMA_MIN, SIGMA_MAX, draw)
        noise = torch.randn(pseudo.images[rows].shape, generator=draw)
        return loss_of(network, guide, rows, sigma, noise, draw)

    train_network(network, loss_at, steps=steps, rate=rate)
    network.eval()


def loss_of(
    network: Backbone, guide: Guide, rows: Tensor, sigma: Tensor, noise: Tensor, draw: torch.Generator
) -> Tensor:
    """Return the loss of a batch: the first images, in the share `blind`, without a draft."""
    x_0 = guide.drafts.pseudo.images[rows]
    x = x_0 + per_image(sigma, x_0) * noise
    way, blind = guide.way, round(guide.way.blind * len(rows))
    by_image = []
    if blind:
        plain = denoise(EDM(), partial(unguided, network), x[:blind], sigma[:blind])
        by_image.append(denoising_loss(plain, x_0[:blind], EDM().c_out(sigma[:blind])))
    if blind < len(rows):
        level, noised, own = guide.drafts.draw_level(draw), x[blind:], sigma[blind:]
        draft = guide.drafts.denoise(rows[blind:], level, noised, own)
        error = guide.error.at(own, guide.drafts.behind(rows[blind:], level).to(own))
        known = guide.drafts.asked(KNOWLEDGE[way.known], rows[blind:], level, noised, own) if way.known else None
        finished = guide.finished(network, noised, own, draft, error, known)
        by_image.append(denoising_loss(finished, x_0[blind:], error))
    return torch.cat(by_image).mean()
