"""One image at a time, where the package decodes batches."""

from torch import Tensor

from cdm_lightning.images import decode_levels, images_of


def decode_image(data: bytes, shape: tuple[int, int, int]) -> Tensor:
    """Decode the bytes of a grey or RGB image to uint8 of `shape` (channel, height, width); see `decode_levels`."""
    return images_of([decode_levels(data, shape)], shape)[0]
