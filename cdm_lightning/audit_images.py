"""The images of an audit: those that a store was fitted on, checked, and held-out ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.membership import LEAST
from cdm_lightning.private_runs import learned_data
from cdm_lightning.store import Store
from cdm_lightning.validate_command import shard_data
from datamodules.manifest import ImageShape, data_sha256, usable
from datamodules.names import HELDOUT, TRAIN, Part


class AuditImages:
    """The training and the held-out images of chosen sources of a store.

    Attributes:
        training: uint8 [n, channel, height, width] by source.
        heldout: likewise.
        keys: of the training images, by source.

    Raises:
        BadInput: a source has too few of either, or was fitted on other images than the shards hold.
    """

    def __init__(self, store: Store, sources: list[str], root: Path, exclude: str | None) -> None:
        self._data = shard_data(store, root, exclude)
        self._public_sha256, self._root = store.info.public_data_sha256, root
        for source in sources:
            self._check(store, source)
        parts = {source: self._data.images(source, TRAIN) for source in sources}
        self.keys: Mapping[str, list[str]] = {source: part[0] for source, part in parts.items()}
        self.training: Mapping[str, Tensor] = {source: part[1] for source, part in parts.items()}
        self.heldout: Mapping[str, Tensor] = {source: self._data.images(source, HELDOUT)[1] for source in sources}

    def _check(self, store: Store, source: str) -> None:
        """Raise BadInput unless the shards hold the images that a source was fitted on, and enough of both parts."""
        channels, size, _ = store.info.image_shape
        if source not in self._data.available_sources():
            raise BadInput(f"'{self._root}' has no shards of source '{source}': give --root DIR, of the store's fit")
        if self._data.manifest(source).image != ImageShape(size, channels) or self._data.data_sha256(
            source
        ) != learned_data(store, source):
            raise BadInput(
                f"source '{source}' was fitted on other images than '{self._root}' has of it, so nobody knows its "
                "members: give --root DIR (and --exclude FILE) of its fit"
            )
        names: dict[Part, str] = {TRAIN: "training", HELDOUT: "held-out"}
        for part, name in names.items():
            if (count := len(self._data.used(source, part))) < LEAST:
                raise BadInput(
                    f"source '{source}' has {count} {name} images in '{self._root}', but an audit needs {LEAST} of "
                    "each: leave it out of --sources, or hold out another share (heldout_fraction)"
                )

    def check_opponent(self, label: str, opponent: Store) -> None:
        """Compare what an opponent was fitted on with these images: then its members are the same.

        Raises:
            BadInput: it has neither the same sources nor one of all of these images, or another `public`.
        """
        cards = {source: learned_data(opponent, source) for source in opponent.sources()}
        same = cards == {source: self._data.data_sha256(source) for source in self.keys}
        if not same and list(cards.values()) != [self._union_sha256()]:
            raise BadInput(
                f"opponent '{label}' was fitted on other training images than the audited sources together: fit it on "
                "these, with the same sources or as one (--data.split random:1)"
            )
        if opponent.info.public_data_sha256 != self._public_sha256:
            raise BadInput(f"opponent '{label}' has a backbone of another public: fit it with the same one")

    def _union_sha256(self) -> str:
        """Return the hash of all training images as those of one source."""
        manifests = [self._data.manifest(source) for source in self.keys]
        samples = {key: sample for manifest in manifests for key, sample in manifest.samples.items()}
        excluded = frozenset[str]().union(*map(self._data.excluded_keys, manifests))
        return data_sha256(usable(replace(manifests[0], samples=samples), TRAIN, excluded))
