"""The stages of the training stream: shards -> raw samples -> order -> batches -> images. All are plain generators."""

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from cdm_lightning.errors import ShardError
from cdm_lightning.images import decode_image
from cdm_lightning.seeding import stable_hash
from datamodules.manifest import AGAIN, Shard

MEMBERS = {"png", "json"}


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in its shard: two files, not decoded."""

    key: str
    png: bytes
    json: bytes
    shard: Path


class DecodedSample(TypedDict):
    """One decoded sample: image uint8 [channel, height, width]."""

    key: str
    image: Tensor
    label: str


class Batch(TypedDict):
    """A batch: image uint8 [batch, channel, height, width], and a key and a label for each."""

    key: list[str]
    image: Tensor
    label: list[str]


def read_shard(path: Path) -> Iterator[RawSample]:
    """Yield the samples of a tar in the order in which they lie there; nothing in it is unpickled or run.

    Raises:
        ShardError: the tar is missing or cut, or a sample is not exactly one .png and one .json.
    """
    try:
        with path.open("rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                yield _raw_sample(sample, path)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({type(error).__name__}): {AGAIN}") from error


def _raw_sample(sample: Mapping[str, Any], path: Path) -> RawSample:
    members = {name for name in sample if not name.startswith("__")}
    if members != MEMBERS:
        raise ShardError(
            f"{path}: sample '{sample['__key__']}' has {sorted(members)}, not one json and one png: {AGAIN}"
        )
    return RawSample(sample["__key__"], sample["png"], sample["json"], path)


def whole_shard(path: Path, shard: Shard) -> list[RawSample]:
    """Read all samples of a shard.

    Raises:
        ShardError: as `read_shard`, or there are not as many as its manifest says.
    """
    samples = list(read_shard(path))
    if len(samples) != shard.samples:
        raise ShardError(f"{path} has {len(samples)} samples, not {shard.samples} as in its manifest: {AGAIN}")
    return samples


def shard_order(names: Iterable[str], seed: int, source: str, epoch: int) -> list[str]:
    """Return the shards in the order of an epoch."""
    return sorted(names, key=lambda name: stable_hash(seed, source, epoch, name))


def sample_order(samples: Iterable[RawSample], seed: int, source: str, epoch: int) -> list[RawSample]:
    """Return the samples of one shard in the order of an epoch."""
    return sorted(samples, key=lambda sample: stable_hash(seed, source, epoch, sample.key))


def keep(samples: Iterable[RawSample], used: AbstractSet[str]) -> Iterator[RawSample]:
    """Yield the samples whose key is used."""
    return (sample for sample in samples if sample.key in used)


def check_complete(folder: Path, count: int, expected: int) -> None:
    """Raise ShardError unless as many used samples were found in the shards as the manifest has."""
    if count != expected:
        raise ShardError(f"the shards in {folder} have {count} of the {expected} used samples of the manifest: {AGAIN}")


def training_order(
    folder: Path, shards: Mapping[str, Shard], used: AbstractSet[str], *, seed: int, source: str, epoch: int
) -> Iterator[RawSample]:
    """Yield every used sample once, in the order of an epoch: a function of the keys, seed, source and epoch alone.

    Raises:
        ShardError: a shard is not what the manifest says, or a used sample is in none of them.
    """
    count = 0
    for name in shard_order(shards, seed, source, epoch):
        samples = sample_order(keep(whole_shard(folder / name, shards[name]), used), seed, source, epoch)
        count += len(samples)
        yield from samples
    check_complete(folder, count, len(used))


def training_stream(
    folder: Path, shards: Mapping[str, Shard], used: AbstractSet[str], *, seed: int, source: str
) -> Iterator[RawSample]:
    """Yield the training order of epoch 0, 1, 2, ... for ever (see `training_order`); `used` must not be empty."""
    for epoch in itertools.count():
        yield from training_order(folder, shards, used, seed=seed, source=source, epoch=epoch)


def batches(samples: Iterable[RawSample], size: int) -> Iterator[list[RawSample]]:
    """Group samples into lists of `size`; the last one of a finite stream may be shorter."""
    stream = iter(samples)
    while batch := list(itertools.islice(stream, size)):
        yield batch


def own_batches(
    stream: Iterable[list[RawSample]], *, rank: int, world: int, worker: int, workers: int
) -> Iterator[list[RawSample]]:
    """Yield the batches of one worker: batch g is rank g % world's, and there worker (g // world) % workers'."""
    for g, batch in enumerate(stream):
        if g % world == rank and (g // world) % workers == worker:
            yield batch


def decode_sample(sample: RawSample, size: int, channels: int) -> DecodedSample:
    """Decode one sample to an image, uint8 [channels, size, size].

    Raises:
        ShardError: its two files are not such an image and a label.
    """
    try:
        image, label = decode_image(sample.png, channels), json.loads(sample.json)["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{sample.shard}: sample '{sample.key}' cannot be decoded ({error}): {AGAIN}") from error
    if image.shape != (channels, size, size) or not isinstance(label, str):
        raise ShardError(f"{sample.shard}: sample '{sample.key}' is no {size}x{size} image with a label: {AGAIN}")
    return {"key": sample.key, "image": image, "label": label}


def decode_batch(samples: Iterable[RawSample], size: int, channels: int) -> Batch:
    """Decode the samples of a batch and stack them."""
    decoded = [decode_sample(sample, size, channels) for sample in samples]
    return {
        "key": [sample["key"] for sample in decoded],
        "image": torch.stack([sample["image"] for sample in decoded]),
        "label": [sample["label"] for sample in decoded],
    }
