"""The endless stream of a source's training batches, for a DataLoader with any number of workers and ranks."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import IterableDataset, get_worker_info

from datamodules.manifest import Manifest
from datamodules.stages import Batch, batches, decode_batch, own_batches, training_stream


@dataclass(frozen=True)
class Share:
    """One process among those that train together: its rank in a world of so many."""

    rank: int
    world: int


class SourceStream(IterableDataset[Batch]):
    """Batches of one source, for ever: all workers of all ranks see one global sequence and decode their own part."""

    def __init__(
        self, folder: Path, manifest: Manifest, used: AbstractSet[str], *, seed: int, batch_size: int, share: Share
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.used = frozenset(used)
        self.seed = seed
        self.batch_size = batch_size
        self.share = share

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        shards, image = self.manifest.shards, self.manifest.image
        samples = training_stream(self.folder, shards, self.used, seed=self.seed, source=self.manifest.source)
        groups = batches(samples, self.batch_size)
        own = own_batches(groups, rank=self.share.rank, world=self.share.world, worker=worker, workers=workers)
        return (decode_batch(group, image.size, image.channels) for group in own)
