"""The stages of the training stream: shards -> raw samples -> order -> batches -> images. All are plain generators."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from cdm_lightning.errors import ShardError
from cdm_lightning.images import decode_levels, images_of
from cdm_lightning.seeding import stable_hash
from datamodules.manifest import AGAIN, ImageShape, Manifest
from datamodules.tars import Checked, RawSample, whole_shard


class Batch(TypedDict):
    """A batch: image uint8 [batch, channel, height, width], and a key and a label for each."""

    key: list[str]
    image: Tensor
    label: list[str]


def shard_order(names: Iterable[str], seed: int, source: str, epoch: int) -> list[str]:
    """Return the shards in the order of an epoch."""
    return sorted(names, key=lambda name: stable_hash(seed, source, epoch, name))


def sample_order(samples: Iterable[RawSample], seed: int, source: str, epoch: int) -> list[RawSample]:
    """Return the samples of one shard in the order of an epoch."""
    return sorted(samples, key=lambda sample: stable_hash(seed, source, epoch, sample.key))


def keep(samples: Iterable[RawSample], used: AbstractSet[str]) -> Iterator[RawSample]:
    """Yield the samples whose key is used."""
    return (sample for sample in samples if sample.key in used)


def training_order(
    folder: Path,
    manifest: Manifest,
    used: AbstractSet[str],
    *,
    seed: int,
    epoch: int,
    seen: dict[str, Checked] | None = None,
) -> Iterator[RawSample]:
    """Yield every used sample once, in the order of an epoch: a function of the keys, seed, source and epoch alone.

    `seen` are shards that were compared with the manifest before, see `whole_shard`.

    Raises:
        ShardError: a shard is not what the manifest says, or a used sample is in none of them.
    """
    source, missing = manifest.source, set(used)
    for name in shard_order(manifest.shards, seed, source, epoch):
        samples = sample_order(keep(whole_shard(folder / name, manifest, seen), missing), seed, source, epoch)
        missing -= {sample.key for sample in samples}
        yield from samples
    if missing:
        raise ShardError(f"no shard in {folder} has sample '{min(missing)}' of the manifest: {AGAIN}")


def training_stream(
    folder: Path, manifest: Manifest, used: AbstractSet[str], *, seed: int, start: int = 0
) -> Iterator[RawSample]:
    """Yield the training order of epoch 0, 1, 2, ... for ever (see `training_order`), from its sample `start` on.

    Epochs before it are skipped without a look at the shards: every epoch has as many samples as are `used`, which
    must not be empty.
    """
    first_epoch, position = divmod(start, len(used))
    seen: dict[str, Checked] = {}
    epochs = (
        training_order(folder, manifest, used, seed=seed, epoch=epoch, seen=seen)
        for epoch in itertools.count(first_epoch)
    )
    return itertools.islice(itertools.chain.from_iterable(epochs), position, None)


def mixed_stream(
    own: Callable[[int], Iterator[RawSample]], public: Callable[[int], Iterator[RawSample]], share: float, start: int
) -> Iterator[RawSample]:
    """Yield one's own samples and a share of public ones for ever, from place `start` of the mixed sequence on.

    Of its first k places floor(k share) are public, so every batch has the share up to one image.

    Args:
        own: yields one's own samples from the k-th on.
        public: the same for the public ones.
        share: of the public ones, at least 0 and below 1.
        start: the first place.
    """
    exact = Fraction(str(share))
    before = int(start * exact)
    streams = own(start - before), public(before)
    for place in itertools.count(start + 1):
        public_ones = int(place * exact)
        yield next(streams[public_ones - before])
        before = public_ones


def batches(samples: Iterable[RawSample], size: int) -> Iterator[list[RawSample]]:
    """Group samples into lists of `size`; the last one of a finite stream may be shorter."""
    stream = iter(samples)
    while batch := list(itertools.islice(stream, size)):
        yield batch


def own_batches(
    stream: Iterable[list[RawSample]], *, rank: int, world: int, worker: int, workers: int
) -> Iterator[list[RawSample]]:
    """Yield the batches of one worker: batch g is rank g % world's, and there worker (g // world) % workers'.

    Webdataset's `split_by_node` and `split_by_worker` cut in the same way, but take all four numbers from environment
    variables, the process group or the worker, and so cannot be told or tested without these.
    """
    own_rank = itertools.islice(stream, rank, None, world)
    return itertools.islice(own_rank, worker, None, workers)


def decode_sample(sample: RawSample, image: ImageShape) -> bytes:
    """Decode one sample to its levels; see `decode_levels`.

    Raises:
        ShardError: it is no image of this size and number of channels.
    """
    try:
        return decode_levels(sample.png, image.shape)
    except ValueError as error:
        raise ShardError(f"{sample.shard}: sample '{sample.key}' cannot be used ({error}): {AGAIN}") from error


def decode_batch(samples: Iterable[RawSample], image: ImageShape) -> Batch:
    """Decode the samples of a batch; there may be none."""
    keys, levels, labels = [], [], []
    for sample in samples:
        keys.append(sample.key)
        levels.append(decode_sample(sample, image))
        labels.append(sample.label)
    return {"key": keys, "image": images_of(levels, image.shape), "label": labels}
