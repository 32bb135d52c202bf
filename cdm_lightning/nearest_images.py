"""The images of sources that were credited: held-out ones, and the training images nearest to a given image."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fit_record import fit_record
from cdm_lightning.images import spread
from cdm_lightning.near_copies import nearest
from cdm_lightning.reference import HELDOUT_IMAGES
from cdm_lightning.store import Store
from cdm_lightning.validate_command import place_of_images, shard_data, tell_other_images
from datamodules import ShardDataModule
from datamodules.names import HELDOUT, TRAIN


@dataclass(frozen=True)
class Shards:
    """The images of the sources, if there is a folder of their shards.

    Attributes:
        root: that folder, or None.
        data: reads it.
        heldout: uint8 [n, channel, height, width] by source.
    """

    root: Path | None = None
    data: ShardDataModule | None = None
    heldout: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, store: Store, sources: list[str]) -> "Shards":
        """Return those that a command line names, or those of the fit, if they are where they were.

        Raises:
            BadInput: `--root` is no folder, or has no shards of these sources.
            ShardError: the shards are not what their manifest says, or hold images of another size.
        """
        record = fit_record(store)
        if config.root is None and not (record.root and Path(record.root).is_dir()):
            return cls()
        root, exclude = place_of_images(config, record, store)
        data = shard_data(store, root, exclude)
        there = [source for source in sources if source in data.available_sources()]
        if config.root is None and any(data.manifest(one).image.shape != store.info.image_shape for one in there):
            return cls()  # they have been written again in another size
        if config.root is not None and not there:
            raise BadInput(f"--root, '{root}', has no shards of {', '.join(sources)}: give the folder of their shards")
        tell_other_images(store, data, there, root)
        return cls(root, data, {source: spread(data.images(source, HELDOUT)[1], HELDOUT_IMAGES) for source in there})

    def add_nearest(
        self, rows: list[dict[str, Any]], pixels: Tensor, k: int, extractor: FeatureExtractor | None
    ) -> None:
        """Add to the row of each image the nearest training images of the source that is credited most.

        Args:
            rows: of `attribute`, one per image; `nearest` is added: keys and distances by pixels and by features.
            pixels: uint8 [image, channel, height, width].
            k: how many.
            extractor: of features, or None.
        """
        if self.data is None:
            return
        there = self.data.available_sources()
        for source in sorted({row["credited"] for row in rows} & set(there)):
            mine = torch.tensor([row["credited"] == source for row in rows])
            keys, training, _ = self.data.images(source, TRAIN)
            if not keys:
                continue
            spaces = {"pixels": nearest(pixels[mine], training, k)}
            if extractor is not None:
                spaces[extractor.name] = nearest(extractor(pixels[mine]), extractor(training), k)
            own = [row for row in rows if row["credited"] == source]
            for space, found in spaces.items():
                for row, index, distance in zip(own, found.index.tolist(), found.distance.tolist(), strict=True):
                    pairs = zip(index, distance, strict=True)
                    row.setdefault("nearest", {})[space] = [{"key": keys[i], "distance": round(d, 6)} for i, d in pairs]
