"""Out-of-fold drafts: `public` is cut into pseudo-sources, and every image is guided by a closed form without it.

So the backbone learns to finish drafts of images that the draft has not seen, as a real source's drafts of new
images are. Those of the backbone are a function of `public` alone; those of a prompt, of its source and of what was
fitted on `public`. A private source's draft is the one that it has released.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.gaussians import MOST_CLUSTERS, Gaussians, Strength
from cdm_lightning.interpolation import interpolate
from cdm_lightning.private_gaussians import Frame, fit_private
from cdm_lightning.pseudo_sources import FOLDS, PseudoSources, folds_of
from cdm_lightning.seeding import generator, stable_hash

ERROR_LEVELS = 17
MEASURED_ON = 24  # images of a fold, which the draft has not seen
ENOUGH = 0.5  # of a size: a draft of fewer images is not one of that size


@dataclass(frozen=True)
class DraftError:
    """r(sigma, n): the root mean square error of drafts of n images, out of fold.

    Attributes:
        size: [size], rising numbers n of images behind a draft.
        sigma: [level], rising noise levels.
        error: [size, level], in units of x_0.
    """

    size: Tensor
    sigma: Tensor
    error: Tensor

    def at(self, sigma: Tensor, n: Tensor) -> Tensor:
        """Return r [batch] for `sigma` [batch] and `n` [batch]: linear in the logarithms, constant beyond the ends."""
        grid = self.sigma.to(sigma).log()
        by_size = interpolate(sigma.log(), grid, self.error.to(sigma).log())
        sizes = self.size.to(sigma).log()
        if len(sizes) == 1:
            return by_size[0].exp()
        upper = torch.searchsorted(sizes, n.to(sigma).log().contiguous()).clamp(1, len(sizes) - 1)
        share = ((n.to(sigma).log() - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])).clamp(0, 1)
        row = torch.arange(len(sigma), device=sigma.device)
        return (by_size[upper - 1, row] * (1 - share) + by_size[upper, row] * share).exp()


@dataclass(frozen=True)
class Drafts:
    """The closed forms that guide the training images of the backbone, or of a prompt.

    Attributes:
        pseudo: the pseudo-sources.
        sizes: numbers of images behind a draft, rising.
        closed_forms: by (group, fold left out, index into `sizes`).
    """

    pseudo: PseudoSources
    sizes: tuple[int, ...]
    closed_forms: dict[tuple[int, int, int], Gaussians]

    @classmethod
    def fit(
        cls,
        pseudo: PseudoSources,
        priors: Sequence[Gaussians],
        strength: Strength,
        rank: int,
        sizes: Sequence[int],
        clusters: int = MOST_CLUSTERS,
        mu: float | None = None,
    ) -> "Drafts":
        """Fit a draft of each of `sizes` for every group and fold, shrunk towards `priors[group]`; see `draft_fit`."""
        closed_forms = {}
        for group in pseudo.groups():
            fit = draft_fit(priors[group], strength, rank, clusters, mu)
            for fold in range(FOLDS):
                for level, size in enumerate(sizes):
                    images = pseudo.outside_fold(group, fold, size)
                    if len(images) == 0:
                        closed_forms[group, fold, level] = priors[group]
                        continue
                    seed = stable_hash("draft", group, fold, size)
                    closed_forms[group, fold, level] = fit(images, seed)
        return cls(pseudo, tuple(sizes), closed_forms)

    def to(self, device: torch.device) -> "Drafts":
        """Return the same with its closed forms on another device."""
        return replace(self, closed_forms={place: own.to(device) for place, own in self.closed_forms.items()})

    def rows_of(self, keys: Sequence[str]) -> Tensor:
        """Return the rows [batch] of `pseudo` that hold these keys."""
        return torch.tensor([self.pseudo.row[key] for key in keys], dtype=torch.long)

    def guide(
        self, keys: Sequence[str], labelled: Tensor, x: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return drafts of training images, shaped as x, and the numbers of images behind them [batch]; class-blind."""
        level, rows = self.draw_level(generator), self.rows_of(keys)
        return self.denoise(rows, level, x, sigma), self.behind(rows, level).to(sigma)

    def behind(self, rows: Tensor, level: int) -> Tensor:
        """Return the number of images behind the draft of each of `rows`: the size, unless there are far fewer."""
        size, there = self.sizes[level], self.pseudo.count_outside_fold(rows)
        return torch.where(there < ENOUGH * size, there, size)

    def draw_level(self, generator: torch.Generator) -> int:
        """Draw an index into `sizes`; each size is twice as likely as the next smaller one."""
        return int(torch.multinomial(2.0 ** torch.arange(len(self.sizes)), 1, generator=generator))

    def denoise(self, rows: Tensor, level: int, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the draft G(x; sigma) of each image, shaped as x, by the closed form that was fitted without it."""
        return self.asked(Gaussians.denoise, rows, level, x, sigma)

    def asked(
        self, ask: Callable[[Gaussians, Tensor, Tensor], Tensor], rows: Tensor, level: int, x: Tensor, sigma: Tensor
    ) -> Tensor:
        """Return what `ask(closed_form, x, sigma)` says of each image, shaped as x, of the form fitted without it."""
        place, found = self.pseudo.group[rows] * FOLDS + self.pseudo.fold[rows], torch.empty_like(x)
        for code in place.unique().tolist():
            mine = (place == code).nonzero().squeeze(1).to(x.device)
            closed_form = self.closed_forms[code // FOLDS, code % FOLDS, level]
            found[mine] = ask(closed_form, x[mine], sigma[mine])
        return found

    def error(self, seed: int) -> DraftError:
        """Measure r(sigma, n) on the images that each draft was fitted without, by drafts that have about n images."""
        sigma = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), ERROR_LEVELS)
        places = [(group, fold) for group in self.pseudo.groups() for fold in range(FOLDS)]
        square = torch.zeros(len(self.sizes), ERROR_LEVELS, dtype=torch.float64)
        count = torch.zeros(len(self.sizes), 1, dtype=torch.float64)
        for group, fold in places:
            x_0 = self.pseudo.inside_fold(group, fold, MEASURED_ON)
            if len(x_0) == 0:
                continue
            noise = torch.randn(x_0.shape, generator=generator(seed, "public", "error", group, fold))
            there = int(self.pseudo.outside_counts[group, fold])
            for level, size in enumerate(self.sizes):
                if there >= ENOUGH * size:
                    by_level = denoising_errors(self.closed_forms[group, fold, level], x_0, noise, sigma)
                    square[level] += by_level.double() * len(x_0)
                    count[level] += len(x_0)
        return DraftError(torch.tensor(self.sizes).float(), sigma, (square / count).sqrt().float())


@dataclass(frozen=True)
class LabelledDrafts:
    """The closed forms that guide the training images of a prompt with labels.

    Attributes:
        whole: of the source; guides an image whose label was dropped.
        by_class: of its classes; guides the others.
    """

    whole: Drafts
    by_class: Drafts

    def to(self, device: torch.device) -> "LabelledDrafts":
        """Return the same with its closed forms on another device."""
        return LabelledDrafts(self.whole.to(device), self.by_class.to(device))

    def guide(
        self, keys: Sequence[str], labelled: Tensor, x: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return drafts, shaped as x, and the numbers of images behind them [batch]; under its class where labelled."""
        draft, n, blind = torch.empty_like(x), torch.empty_like(sigma), ~labelled
        named, unnamed = (
            [key for key, own in zip(keys, mine.tolist(), strict=True) if own] for mine in (labelled, blind)
        )
        rows = self.by_class.rows_of(named)
        draft[labelled] = self.by_class.denoise(rows, 0, x[labelled], sigma[labelled])
        n[labelled] = self.by_class.pseudo.count_outside_fold(rows).to(n)
        draft[blind], n[blind] = self.whole.guide(unnamed, labelled[blind], x[blind], sigma[blind], generator)
        return draft, n


@dataclass(frozen=True)
class MixedDrafts:
    """The closed forms that guide the training images of a prompt, of which a share is drawn from `public`.

    Every image, of the source or of `public`, is guided by the mixture of both; the source's part of it was fitted
    without the fold of the image's key. (`public`'s part has seen `public`'s images.)

    Attributes:
        by_fold: the mixture without each fold of the source.
        n: of the source's images behind a draft.
    """

    by_fold: tuple[Gaussians, ...]
    n: int

    def to(self, device: torch.device) -> "MixedDrafts":
        """Return the same with its closed forms on another device."""
        return replace(self, by_fold=tuple(own.to(device) for own in self.by_fold))

    @classmethod
    def of(cls, whole: Drafts, public: Gaussians, share: float) -> "MixedDrafts":
        """Mix a share of `public` into the drafts of a source that was left in one piece, of one size."""
        return cls(
            tuple(whole.closed_forms[0, fold, 0].mixed_with(public, share) for fold in range(FOLDS)), whole.sizes[0]
        )

    def guide(
        self, keys: Sequence[str], labelled: Tensor, x: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return drafts of training images, shaped as x, and the numbers of images behind them [batch]; class-blind."""
        fold, draft = folds_of(keys).to(x.device), torch.empty_like(x)
        for k, closed_form in enumerate(self.by_fold):
            mine = fold == k
            draft[mine] = closed_form.denoise(x[mine], sigma[mine])
        return draft, torch.full_like(sigma, self.n)


@dataclass(frozen=True)
class ReleasedDraft:
    """The closed form that a private source has released guides all of its training images.

    It has seen them, but by its privacy it would be nearly the same without any one of them. Drafts out of fold would
    be further releases.

    Attributes:
        closed_form: as it was released.
        n: the released number of images behind it.
    """

    closed_form: Gaussians
    n: int

    def to(self, device: torch.device) -> "ReleasedDraft":
        """Return the same with its closed form on another device."""
        return replace(self, closed_form=self.closed_form.to(device))

    def guide(
        self, keys: Sequence[str], labelled: Tensor, x: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return drafts of training images, shaped as x, and the number of images behind them [batch]; class-blind."""
        return self.closed_form.denoise(x, sigma), torch.full_like(sigma, self.n)


def draft_fit(
    prior: Gaussians, strength: Strength, rank: int, clusters: int = MOST_CLUSTERS, mu: float | None = None
) -> Callable[[Tensor, int], Gaussians]:
    """Return what fits images, with a seed, as a source's closed form is fitted.

    Args:
        prior: what it is shrunk towards.
        strength: of that prior.
        rank: of the result.
        clusters: at most.
        mu: as a private source's (see `private_gaussians`); the images are public, so the noise is no secret.
    """
    if mu is None:
        return lambda images, seed: Gaussians.fit(
            images, seed=seed, public=prior, strength=strength, rank=rank, clusters=clusters
        )
    frame, private = Frame.of(prior), mu

    def fit(images: Tensor, seed: int) -> Gaussians:
        noise = partial(ordinary_noise, generator(seed, "private draft"))
        return fit_private(images, frame, mu=private, noise=noise, rank=rank, clusters=clusters)[0]

    return fit


def ordinary_noise(generator: torch.Generator, count: int) -> Tensor:
    """Return standard normal numbers [count] that can be repeated: they are no secret."""
    return torch.randn(count, generator=generator, dtype=torch.float64)


def denoising_errors(closed_form: Gaussians, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean square error [level] of a closed form on x_0 + sigma * noise at every `sigma` [level]."""
    errors = []
    for level in sigma:
        denoised = closed_form.denoise(x_0 + level * noise, level.expand(len(x_0)))
        errors.append((denoised - x_0).square().mean())
    return torch.stack(errors)
