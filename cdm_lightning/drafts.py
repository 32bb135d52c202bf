"""Out-of-fold drafts: `public` is cut into pseudo-sources, and every image is guided by a closed form without it.

So the backbone learns to finish drafts of images that the draft has not seen, as a real source's drafts of new
images are. All of it is a function of `public` alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import interpolate
from cdm_lightning.gaussians import Gaussians, Strength, cluster_of
from cdm_lightning.seeding import generator, stable_hash

FOLDS = 4
SMALLEST_GROUP = 20
SIZES = (20, 100, 500)
ERROR_LEVELS = 17
IMAGES_PER_DRAFT = 24
PRIOR_IMAGES = 2500


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
class PseudoSources:
    """How `public` is cut: its classes, or clusters where it has one class; folds by hash of the key.

    Attributes:
        images: [n, channel, height, width] in [-1, 1], in the order of `keys`.
        keys: of the images.
        group: [n] pseudo-source of each image.
        fold: [n] in 0..FOLDS-1.
    """

    images: Tensor
    keys: tuple[str, ...]
    group: Tensor
    fold: Tensor

    @classmethod
    def cut(cls, images: Tensor, keys: Sequence[str], labels: Sequence[str], seed: int) -> "PseudoSources":
        """Cut by label; small classes are pooled, and if that leaves one pseudo-source, by k-means cluster.

        Raises:
            BadInput: there are too few images.
        """
        if len(keys) < 2 * SMALLEST_GROUP:
            raise BadInput(f"public has {len(keys)} images; the backbone needs at least {2 * SMALLEST_GROUP} of them")
        counts = Counter(labels)
        names = sorted(label for label in counts if counts[label] >= SMALLEST_GROUP)
        pooled = sum(counts[label] for label in counts if label not in names)
        if len(names) + (pooled >= SMALLEST_GROUP) > 1:
            places = {label: place for place, label in enumerate(names)}
            last = len(names) - (0 < pooled < SMALLEST_GROUP)
            group = torch.tensor([places.get(label, last) for label in labels])
        else:
            group = cluster_of(images.flatten(1).double(), stable_hash(seed, "public", "groups"))
        return cls(images, tuple(keys), group, _folds(keys))

    @classmethod
    def whole(cls, images: Tensor, keys: Sequence[str]) -> "PseudoSources":
        """Leave a source in one piece: its prompt is trained on drafts of its own folds."""
        return cls(images, tuple(keys), torch.zeros(len(keys), dtype=torch.long), _folds(keys))

    @cached_property
    def row(self) -> dict[str, int]:
        """Return the row of each key."""
        return {key: row for row, key in enumerate(self.keys)}

    def groups(self) -> range:
        """Return the indices of the pseudo-sources."""
        return range(int(self.group.max()) + 1)

    def without_group(self, group: int) -> Tensor:
        """Return at most PRIOR_IMAGES images of the other groups, or of all if there is only one group."""
        rows = (self.group != group).nonzero()[:, 0] if len(self.groups()) > 1 else torch.arange(len(self.group))
        return self.images[self._hashed(rows, "prior")[:PRIOR_IMAGES]]

    def outside_fold(self, group: int, fold: int, size: int) -> Tensor:
        """Return `size` images of a group that are not in `fold`, chosen by hash of the key; all, if they are fewer."""
        rows = ((self.group == group) & (self.fold != fold)).nonzero()[:, 0]
        return self.images[self._hashed(rows, f"draft-{size}")[:size]]

    def inside_fold(self, group: int, fold: int, count: int) -> Tensor:
        """Return the first `count` images of a group that are in `fold`."""
        return self.images[((self.group == group) & (self.fold == fold)).nonzero()[:count, 0]]

    def sizes(self) -> list[int]:
        """Return the numbers of images behind the drafts: those of SIZES that some group can give, and the largest."""
        largest = max(int(((self.group == g) & (self.fold != f)).sum()) for g in self.groups() for f in range(FOLDS))
        return [size for size in SIZES if size < largest] + [largest]

    def _hashed(self, rows: Tensor, purpose: str) -> Tensor:
        order = sorted(rows.tolist(), key=lambda row: stable_hash(purpose, self.keys[row]))
        return torch.tensor(order, dtype=torch.long)


@dataclass(frozen=True)
class Drafts:
    """The closed forms that guide the training images of the backbone.

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
        cls, pseudo: PseudoSources, priors: Sequence[Gaussians], strength: Strength, rank: int, sizes: Sequence[int]
    ) -> "Drafts":
        """Fit a draft of each of `sizes` for every group and fold, shrunk towards `priors[group]`."""
        closed_forms = {}
        for group in pseudo.groups():
            for fold in range(FOLDS):
                for level, size in enumerate(sizes):
                    images = pseudo.outside_fold(group, fold, size)
                    if len(images) == 0:
                        closed_forms[group, fold, level] = priors[group]
                        continue
                    seed = stable_hash("draft", group, fold, size)
                    closed_forms[group, fold, level] = Gaussians.fit(
                        images, seed=seed, public=priors[group], strength=strength, rank=rank
                    )
        return cls(pseudo, tuple(sizes), closed_forms)

    def rows_of(self, keys: Sequence[str]) -> Tensor:
        """Return the rows [batch] of `pseudo` that hold these keys."""
        return torch.tensor([self.pseudo.row[key] for key in keys])

    def draw_level(self, generator: torch.Generator) -> int:
        """Draw an index into `sizes`; each size is twice as likely as the next smaller one."""
        return int(torch.multinomial(2.0 ** torch.arange(len(self.sizes)), 1, generator=generator))

    def denoise(self, rows: Tensor, level: int, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the draft G(x; sigma) of each image, shaped as x, by the closed form that was fitted without it."""
        place = self.pseudo.group[rows] * FOLDS + self.pseudo.fold[rows]
        draft = torch.empty_like(x)
        for code in place.unique().tolist():
            mine = (place == code).to(x.device)
            closed_form = self.closed_forms[code // FOLDS, code % FOLDS, level].to(x.device)
            draft[mine] = closed_form.denoise(x[mine], sigma[mine])
        return draft

    def error(self, seed: int) -> DraftError:
        """Measure r(sigma, n) on the images that each draft was fitted without."""
        sigma = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), ERROR_LEVELS)
        places = [(group, fold) for group in self.pseudo.groups() for fold in range(FOLDS)]
        square = torch.zeros(len(self.sizes), ERROR_LEVELS, dtype=torch.float64)
        count = 0
        for group, fold in places:
            x_0 = self.pseudo.inside_fold(group, fold, IMAGES_PER_DRAFT)
            if len(x_0) == 0:
                continue
            noise = torch.randn(x_0.shape, generator=generator(seed, "public", "error", group, fold))
            count += len(x_0)
            for size in range(len(self.sizes)):
                by_level = denoising_errors(self.closed_forms[group, fold, size], x_0, noise, sigma)
                square[size] += by_level.double() * len(x_0)
        return DraftError(torch.tensor(self.sizes).float(), sigma, (square / count).sqrt().float())


def _folds(keys: Sequence[str]) -> Tensor:
    """Return the fold [n] of each key, a hash of it."""
    return torch.tensor([stable_hash("fold", key) % FOLDS for key in keys])


def denoising_errors(closed_form: Gaussians, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean square error [level] of a closed form on x_0 + sigma * noise at every `sigma` [level]."""
    errors = []
    for level in sigma:
        denoised = closed_form.denoise(x_0 + level * noise, level.expand(len(x_0)))
        errors.append((denoised - x_0).square().mean())
    return torch.stack(errors)
