"""The endless stream of a source's training batches, for a DataLoader with any number of workers and ranks."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cdm_lightning.errors import ShardError
from cdm_lightning.seeding import stable_hash
from datamodules.manifest import Manifest
from datamodules.stages import Batch, batches, decode_batch, mixed_stream, own_batches, training_stream
from datamodules.tars import RawSample


@dataclass(frozen=True)
class Share:
    """One process among those that train together: its rank in a world of so many."""

    rank: int
    world: int


@dataclass(frozen=True)
class PublicShare:
    """The public images that take a share of the places in a source's batches; `used` are their keys."""

    share: float
    folder: Path
    manifest: Manifest
    used: frozenset[str]


class SourceStream(IterableDataset[Batch | ShardError]):
    """Batches of one source, for ever: all workers of all ranks see one global sequence and decode their own part.

    Every rank starts at its batch `first_batch`; what lies before it is not decoded. What is wrong with a shard comes
    as the last item.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        used: AbstractSet[str],
        *,
        seed: int,
        batch_size: int,
        share: Share,
        first_batch: int,
        public: PublicShare | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.used = frozenset(used)
        self.seed = seed
        self.batch_size = batch_size
        self.share = share
        self.first_batch = first_batch
        self.public = public

    def __iter__(self) -> Iterator[Batch | ShardError]:
        try:
            for group in self._own_batches():
                yield decode_batch(group, self.manifest.image)
        except ShardError as error:
            yield error

    def _own_batches(self) -> Iterator[list[RawSample]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start = self.first_batch * self.share.world * self.batch_size
        groups = batches(self._samples(start), self.batch_size)
        return own_batches(groups, rank=self.share.rank, world=self.share.world, worker=worker, workers=workers)

    def _samples(self, start: int) -> Iterator[RawSample]:
        """Yield the sequence of all ranks from place `start` on; the order of public images is the source's own."""

        def own(first: int) -> Iterator[RawSample]:
            return training_stream(self.folder, self.manifest, self.used, seed=self.seed, start=first)

        mixed = self.public
        if mixed is None:
            return own(start)
        seed = stable_hash(self.seed, self.manifest.source, "public")

        def public(first: int) -> Iterator[RawSample]:
            return training_stream(mixed.folder, mixed.manifest, mixed.used, seed=seed, start=first)

        return mixed_stream(own, public, mixed.share, start)


def _as_it_is(item: Any) -> Any:
    """Return what the stream yields: DataLoader would look at every key and label for something to convert."""
    return item


class SourceLoader(DataLoader[Batch | ShardError]):
    """Loads a `SourceStream` and raises the error that it yields: one raised in a worker comes with its traceback.

    The generator, which nobody draws from, keeps DataLoader away from the global one.
    """

    def __init__(self, stream: SourceStream, num_workers: int) -> None:
        random = torch.Generator()
        super().__init__(stream, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, generator=random)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, ShardError):
                raise item
            yield item
