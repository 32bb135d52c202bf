"""Pseudo-sources: `public`, or one source, cut into groups and folds, on which closed forms are fitted out of fold."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.gaussians import cluster_of
from cdm_lightning.seeding import stable_hash

FOLDS = 4
SMALLEST_GROUP = 20
IMAGES_PER_GROUP = 50
MOST_GROUPS = 10
SIZES = (20, 100, 500)
PRIOR_IMAGES = 2500


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
            raise BadInput(
                f"public has {len(keys)} images; the backbone needs at least {2 * SMALLEST_GROUP} of them: write the "
                "shards again with more (`shards`, or another data.root)"
            )
        counts = Counter(labels)
        names = sorted(label for label in counts if counts[label] >= SMALLEST_GROUP)
        pooled = sum(counts[label] for label in counts if label not in names)
        if len(names) + (pooled >= SMALLEST_GROUP) > 1:
            places = {label: place for place, label in enumerate(names)}
            last = len(names) - (0 < pooled < SMALLEST_GROUP)
            group = torch.tensor([places.get(label, last) for label in labels])
        else:
            groups = max(2, min(len(keys) // IMAGES_PER_GROUP, MOST_GROUPS))
            group = cluster_of(images.flatten(1).double(), stable_hash(seed, "public", "groups"), groups)
        return cls(images, tuple(keys), group, folds_of(keys))

    @classmethod
    def whole(cls, images: Tensor, keys: Sequence[str]) -> "PseudoSources":
        """Leave a source in one piece: its prompt is trained on drafts of its own folds."""
        return cls(images, tuple(keys), torch.zeros(len(keys), dtype=torch.long), folds_of(keys))

    @classmethod
    def by_label(cls, images: Tensor, keys: Sequence[str], labels: Sequence[str]) -> "PseudoSources":
        """Cut a source by class, however small a class is: group k holds the k-th label in sorted order."""
        names = sorted(set(labels))
        return cls(images, tuple(keys), torch.tensor([names.index(label) for label in labels]), folds_of(keys))

    @cached_property
    def row(self) -> dict[str, int]:
        """Return the row of each key."""
        return {key: row for row, key in enumerate(self.keys)}

    @cached_property
    def outside_counts(self) -> Tensor:
        """Return how many images of each group are not in each fold [group, fold]."""
        groups = len(self.groups())
        inside = torch.bincount(self.group * FOLDS + self.fold, minlength=groups * FOLDS).reshape(groups, FOLDS)
        return inside.sum(1, keepdim=True) - inside

    def groups(self) -> range:
        """Return the indices of the pseudo-sources."""
        return range(int(self.group.max()) + 1)

    def without_group(self, group: int) -> Tensor:
        """Return at most PRIOR_IMAGES images of the other groups, or of all if there is only one group."""
        rows = (self.group != group).nonzero()[:, 0] if len(self.groups()) > 1 else torch.arange(len(self.group))
        return self.images[self._hashed(rows, "prior")[:PRIOR_IMAGES]]

    def outside(self, fold: int) -> Tensor:
        """Return at most 2 PRIOR_IMAGES images of all groups that are not in `fold`."""
        rows = (self.fold != fold).nonzero()[:, 0]
        return self.images[self._hashed(rows, "prior")[: 2 * PRIOR_IMAGES]]

    def outside_fold(self, group: int, fold: int, size: int) -> Tensor:
        """Return `size` images of a group that are not in `fold`, chosen by hash of the key; all, if they are fewer."""
        rows = ((self.group == group) & (self.fold != fold)).nonzero()[:, 0]
        return self.images[self._hashed(rows, f"draft-{size}")[:size]]

    def count_outside_fold(self, rows: Tensor) -> Tensor:
        """Return, for each of `rows`, how many images of its group are not in its fold."""
        return self.outside_counts[self.group[rows], self.fold[rows]]

    def inside_fold(self, group: int, fold: int, count: int) -> Tensor:
        """Return `count` images of a group that are in `fold`, its folders in turns; all, if they are fewer.

        A key begins with the folders of an image, so the first ones in order would be of one folder. Those of one
        folder come in the order of their keys.
        """
        turns, turn = Counter[str](), list[tuple[int, int, int]]()
        for row in ((self.group == group) & (self.fold == fold)).nonzero()[:, 0].tolist():
            folder = self.keys[row].rpartition("-")[0]
            turn.append((turns[folder], stable_hash("turn", folder), row))
            turns[folder] += 1
        return self.images[torch.tensor([row for *_, row in sorted(turn)[:count]], dtype=torch.long)]

    def sizes(self) -> list[int]:
        """Return the numbers of images behind the drafts: those of SIZES that some group can give, and the largest."""
        largest = int(self.outside_counts.max())
        return [size for size in SIZES if size < largest] + [largest]

    def _hashed(self, rows: Tensor, purpose: str) -> Tensor:
        order = sorted(rows.tolist(), key=lambda row: stable_hash(purpose, self.keys[row]))
        return torch.tensor(order, dtype=torch.long)


def folds_of(keys: Sequence[str]) -> Tensor:
    """Return the fold [n] of each key, a hash of it."""
    return torch.tensor([stable_hash("fold", key) % FOLDS for key in keys])
