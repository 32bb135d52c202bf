"""The data of the sources for Lightning: shards that are written if they are missing, and one source at a time."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import lightning
from torch import Tensor
from torch.utils.data import DataLoader

from cdm_lightning.errors import BadInput, UnknownSource
from datamodules import manifest as manifests
from datamodules.agreement import check_agreement, check_shape
from datamodules.exclusions import forgotten_keys, read_keys
from datamodules.image_defaults import image_shape
from datamodules.manifest import FILTERED, MANIFEST, Manifest, Sample, read_manifest, usable
from datamodules.names import HELDOUT, PUBLIC, TRAIN, Part
from datamodules.overlap import check_apart
from datamodules.plan import Plan, check_at_least, check_fraction
from datamodules.publish import mend
from datamodules.splits import default_split
from datamodules.stages import decode_batch, decode_sample, keep
from datamodules.stream import PublicShare, Share, SourceLoader, SourceStream
from datamodules.verification import all_samples, verify_files
from datamodules.writer import write_shards

log = logging.getLogger("datamodules")


class ShardDataModule(lightning.LightningDataModule):
    """Data of several sources as shards, `root/SOURCE/{manifest.json, NNNNN.tar}`.

    Args:
        root: folder of the shards; they are written there if there are none.
        from_: where the images come from.
        input: folder of the images (from folder), CSV file path,source,label (from list), or the folder where a
            data set of torchvision lies or is downloaded to (data/torchvision unless given).
        split: what makes a source: class, folder, list, or random:N for N random parts; by default folder and list
            for such origins, otherwise class.
        sources: the sources to use: all, a list of names, or names with commas between them.
        public_classes: labels, or indices of classes, whose images make up the public source.
        public_fraction: fraction of every class that goes to the public source.
        heldout_fraction: fraction of every source that is held out from training.
        shards_per_source: number of tars that the samples of a source are spread over.
        exclude: file of keys, one a line, of samples that are not used.
        image_size: height and width of the images in pixels; by default those of the shards, or if there are none
            those of the data set (of folders and lists 32).
        channels: 1 for grey, 3 for colour; by default as for the size (of folders and lists 3).
        batch_size: number of images in a batch.
        public_mix: share of every training batch of a source that is drawn from `public` instead.
        num_workers: number of processes that decode images; 0 decodes in the main process.
        seed: seed of the training order.

    Attributes:
        forgotten: folder that lists what a store has forgotten; those samples are not used either.

    Raises:
        BadInput: a value is out of range.
    """

    def __init__(
        self,
        root: str = "data/digits",
        from_: Literal["cifar10", "fashion_mnist", "digits", "folder", "list"] = "digits",
        input: str | None = None,
        split: str | None = None,
        sources: str | list[str] = "all",
        public_classes: list[str | int] | None = None,
        public_fraction: float = 0.0,
        heldout_fraction: float = 0.1,
        shards_per_source: int = 4,
        exclude: str | None = None,
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        batch_size: int = 64,
        public_mix: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("batch_size", batch_size, 1)
        check_at_least("num_workers", num_workers, 0)
        check_fraction("public_mix", public_mix)
        image = image_shape(root, from_, image_size, channels)
        self.plan = Plan(
            from_,
            input,
            default_split(from_) if split is None else split,
            image.size,
            image.channels,
            public_classes or [],
            public_fraction,
            heldout_fraction,
            shards_per_source,
        )
        self.root = Path(root)
        self.split = split
        self.sources = sources
        self.exclude = exclude
        self.forgotten: Path | None = None
        self.batch_size = batch_size
        self.public_mix = public_mix
        self.num_workers = num_workers
        self.seed = seed
        self.phase, self.first_batch = "", 0

    def prepare(self) -> None:
        """Write the shards of all sources if `root` has none; shards that are there are left as they are.

        Raises:
            BadInput: the images cannot be used, or `root` cannot be written.
            UnknownSource: a source to use is not below `root`.
            ShardError: shards that are there were written with other settings, or a source shares an image with
                `public`.
        """
        if not self._folders():
            write_shards(self.root, self.plan)
        names = [PUBLIC] * self.has_public() + self.chosen_sources()
        manifests = {name: self.manifest(name) for name in names}
        check_agreement(self.root, manifests, self.plan, self.split)
        check_apart(self.root, manifests, frozenset().union(*map(self.excluded_keys, manifests.values())))
        self._tell_unknown_keys()

    def _tell_unknown_keys(self) -> None:
        """Log which excluded keys are in no manifest below `root`: a misspelt one excludes nothing."""
        if self.exclude is None:
            return
        known = set[str]().union(*(self.manifest(name).samples for name in self._folders()))
        if unknown := sorted(read_keys(Path(self.exclude)) - known):
            log.warning("data.exclude lists keys that no source below %s has: %s", self.root, ", ".join(unknown[:10]))

    def _folders(self) -> list[str]:
        mend(self.root)
        return sorted(path.parent.name for path in self.root.glob(f"*/{MANIFEST}"))

    def available_sources(self) -> list[str]:
        """Return the names of all sources below `root`, sorted, without `public`."""
        return [name for name in self._folders() if name != PUBLIC]

    def has_public(self) -> bool:
        """Tell whether `root` has a `public` source."""
        return PUBLIC in self._folders()

    def public_is_filtered(self) -> bool:
        """Tell whether images were left out of `public`: they may be those of a source, which it would tell of."""
        if not self.has_public():
            return False
        manifest = self.manifest(PUBLIC)
        excluded = self.excluded_keys(manifest) & manifest.samples.keys()
        return bool(excluded) or (self.root / PUBLIC / FILTERED).exists()

    def chosen_sources(self) -> list[str]:
        """Return the sources to use: in the order in which they were given, or all sorted.

        Raises:
            UnknownSource: one is not below `root`.
        """
        known = self.available_sources()
        if self.sources == "all":
            return known
        named = self.sources
        chosen = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
        for source in chosen:
            if source not in known:
                raise UnknownSource(source, known, str(self.root))
        return list(dict.fromkeys(chosen))

    def excluded_keys(self, manifest: Manifest) -> frozenset[str]:
        """Return the keys that the file `exclude` lists, and those of a source's samples that were forgotten.

        Raises:
            BadInput: the file is missing, a line is no key, or the list of forgotten samples is damaged.
        """
        listed = frozenset[str]() if self.exclude is None else read_keys(Path(self.exclude))
        if self.forgotten is None:
            return listed
        return listed | forgotten_keys(self.forgotten, manifest.source, manifest.samples)

    def manifest(self, source: str) -> Manifest:
        """Return what the manifest of a source, or of `public`, says.

        Raises:
            UnknownSource: there is no such source below `root`.
            ShardError: the manifest is malformed.
        """
        return read_manifest(self._folder(source))

    def _folder(self, source: str) -> Path:
        if source not in self._folders():
            raise UnknownSource(source, self._folders(), str(self.root))
        return self.root / source

    def verify(self, source: str) -> Manifest:
        """Compare the shards of a source with its manifest, byte for byte and sample for sample, and with the settings.

        Raises:
            UnknownSource: there is no such source below `root`.
            ShardError: they differ, or an image cannot be decoded.
        """
        manifest = self._verify_files(source)
        for sample in all_samples(self.root / source, manifest):
            decode_sample(sample, manifest.image)
        return manifest

    def _verify_files(self, source: str) -> Manifest:
        manifest = verify_files(self._folder(source))
        check_shape(self.root, manifest, self.plan)
        return manifest

    def used(self, source: str, part: Part) -> dict[str, Sample]:
        """Return the samples of a part that are used, by key: not excluded, each content once."""
        manifest = self.manifest(source)
        return usable(manifest, part, self.excluded_keys(manifest))

    def data_sha256(self, source: str) -> str:
        """Return the hash of the key, content and label of every training sample that is used."""
        return manifests.data_sha256(self.used(source, TRAIN))

    def class_counts(self, source: str) -> dict[str, int]:
        """Return the number of used training samples of each class, sorted by class."""
        return dict(sorted(Counter(sample.label for sample in self.used(source, TRAIN).values()).items()))

    def images(self, source: str, part: Part) -> tuple[list[str], Tensor, list[str]]:
        """Return keys (sorted), images (uint8 [n, channel, height, width]) and labels of the used samples of a part.

        Raises:
            UnknownSource: there is no such source below `root`.
            ShardError: the shards are not what the manifest or the settings say.
        """
        manifest = self._verify_files(source)
        used = usable(manifest, part, self.excluded_keys(manifest))
        batch = decode_batch(keep(all_samples(self.root / source, manifest), used.keys()), manifest.image)
        return batch["key"], batch["image"], batch["label"]

    def open(self, source: str, first_batch: int = 0) -> None:
        """Make `source`, or `public`, the one that `train_dataloader` streams.

        Args:
            source: the source.
            first_batch: the batch of each rank at which the stream starts: as many optimizer steps were done before.

        Raises:
            BadInput: `first_batch` is negative.
            UnknownSource: there is no such source below `root`.
            ShardError: its shards are not what the manifest or the settings say.
        """
        check_at_least("first_batch", first_batch, 0)
        self._verify_files(source)
        self.phase, self.first_batch = source, first_batch

    def train_dataloader(self) -> SourceLoader:
        """Return the endless batches of the opened source: {key, image uint8 [batch, channel, height, width], label}.

        Raises:
            BadInput: it has no usable training sample.
        """
        assert self.phase, "open(source) comes before train_dataloader()"
        used = self.used(self.phase, TRAIN)
        if not used:
            raise BadInput(f"source '{self.phase}' in '{self.root}' has no usable training sample")
        stream = SourceStream(
            self.root / self.phase,
            self.manifest(self.phase),
            used.keys(),
            seed=self.seed,
            batch_size=self.batch_size,
            share=self._share(),
            first_batch=self.first_batch,
            public=self._public_share(),
        )
        return SourceLoader(stream, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out images of the opened source as one batch: {source, image}.

        Raises:
            ShardError: its shards are not what the manifest or the settings say.
        """
        assert self.phase, "open(source) comes before val_dataloader()"
        batch = {"source": self.phase, "image": self.images(self.phase, HELDOUT)[1]}
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

    def _public_share(self) -> PublicShare | None:
        """Return the public images that are mixed into the opened source's batches, if any are."""
        if not self.public_mix or self.phase == PUBLIC:
            return None
        manifest, used = self._verify_files(PUBLIC), self.used(PUBLIC, TRAIN)
        if not used:
            raise BadInput(f"public in '{self.root}' has no usable training sample, but public_mix draws from it")
        return PublicShare(self.public_mix, self.root / PUBLIC, manifest, frozenset(used))

    def _share(self) -> Share:
        return Share(self.trainer.global_rank, self.trainer.world_size) if self.trainer else Share(0, 1)
