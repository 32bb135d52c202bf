"""The images that the samples of an evaluation are measured with."""

from pathlib import Path

from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.reference import FEWEST
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import Json
from cdm_lightning.validate_command import heldout_images, shard_data
from cdm_lightning.yardstick import JUDGE_IMAGES, Yardstick
from datamodules.manifest import data_sha256
from datamodules.names import HELDOUT, TRAIN, Part

LEAST = 4  # images: half of them is what a score needs
PARTS: tuple[Part, ...] = (TRAIN, HELDOUT)


class EvaluationImages:
    """The images of chosen sources that samples are measured with.

    Args:
        store: has the sources.
        sources: their names.
        root: folder of the shards.
        exclude: file of keys that are not used, or None.
        judge_images: training images of each source that the judge of sources learns from; 0 judges none.

    Raises:
        BadInput: a source has too few of them, or they are not as large as those of the store.
    """

    def __init__(
        self, store: Store, sources: list[str], root: Path, exclude: str | None, judge_images: int = JUDGE_IMAGES
    ) -> None:
        self._data = shard_data(store, root, exclude)
        self._heldout = heldout_images(store, sources, root, exclude)
        for source in sources:
            if (count := len(self._heldout.get(source, ()))) < FEWEST:
                raise BadInput(
                    f"source '{source}' has {count} held-out images in '{root}', but evaluate needs {FEWEST} of each: "
                    "leave it out of --sources, or hold out more (heldout_fraction)"
                )
        if sum(map(len, self._heldout.values())) < LEAST:
            raise BadInput(f"'{root}' has fewer than {LEAST} held-out images of {', '.join(sources)}: hold out more")
        self._judge_images = judge_images
        self._n = {source: store.read_card(source).n for source in sources}

    def identity(self) -> dict[str, Json]:
        """Return all that a yardstick of these images depends on."""
        training, heldout = (
            {source: data_sha256(self._data.used(source, part)) for source in self._n} for part in PARTS
        )
        return {"training": training, "heldout": heldout, "n": self._n, "judge_images": self._judge_images}

    def training(self) -> dict[str, Tensor]:
        """Return the training images, uint8 [n, channel, height, width], by source."""
        return {source: self._data.images(source, TRAIN)[1] for source in self._n}

    def yardstick(self, extractor: FeatureExtractor, kept: Path) -> Yardstick:
        """Return the yardstick of these images; features are kept in a folder."""
        return Yardstick.of(self._heldout, self.training(), self.prior(), extractor, kept, self._judge_images)

    def prior(self) -> dict[str, float]:
        """Return lambda_i by source."""
        total = sum(self._n.values())
        return {source: n / total for source, n in self._n.items()}
