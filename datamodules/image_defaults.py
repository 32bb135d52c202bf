"""The size of images that nobody gave a size: that of the shards, or before there are any that of their origin."""

from contextlib import suppress
from pathlib import Path

from cdm_lightning.errors import ShardError
from datamodules.manifest import MANIFEST, ImageShape, read_manifest

OF_ORIGIN = {
    "digits": ImageShape(8, 1),
    "fashion_mnist": ImageShape(28, 1),
    "cifar10": ImageShape(32, 3),
    "folder": ImageShape(32, 3),
    "list": ImageShape(32, 3),
}
SMALLEST = ImageShape(1, 1)  # of an origin that there is not, which is refused where it is used


def image_shape(root: str, origin: str, size: int | None, channels: int | None) -> ImageShape:
    """Return height (as width) and channels, those that are None by default.

    Args:
        root: folder of the shards, if they are written.
        origin: where images come from otherwise, a key of OF_ORIGIN.
        size: that was given, or None.
        channels: that were given, or None.
    """
    if size is not None and channels is not None:
        return ImageShape(size, channels)
    found = OF_ORIGIN.get(origin, SMALLEST)
    for path in sorted(Path(root).glob(f"*/{MANIFEST}"))[:1]:
        with suppress(ShardError):  # whoever uses the source says what is wrong
            found = read_manifest(path.parent).image
    return ImageShape(found.size if size is None else size, found.channels if channels is None else channels)
