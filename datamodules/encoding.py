"""Encode images as they are written: converted, cut, resized, as PNG, grouped by source."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass

from PIL import Image

from cdm_lightning.errors import BadInput
from cdm_lightning.images import as_tensor, crop_and_resize, encode_png
from datamodules.manifest import Sample
from datamodules.plan import Plan
from datamodules.records import Collection, Record
from datamodules.splits import destination, part_of, public_labels


@dataclass(frozen=True)
class Encoded:
    """One image as it is written: its PNG bytes, what the manifest says of it, and where it comes from."""

    png: bytes
    sample: Sample
    origin: str

    def members(self, key: str) -> list[tuple[str, bytes]]:
        """Return name and content of the two files that the image is in a tar."""
        record = json.dumps({"label": self.sample.label, "origin": self.origin}, sort_keys=True)
        return [(f"{key}.png", self.png), (f"{key}.json", record.encode())]


Sources = dict[str, dict[str, Encoded]]


def encode_sources(collection: Collection, plan: Plan) -> Sources:
    """Encode all images and group them by source, then key."""
    labels = public_labels(collection.classes, plan.public_classes)
    sources: Sources = defaultdict(dict)
    for record in collection.records:
        source = destination(record, plan.split, labels, plan.public_fraction)
        sources[source][record.key] = encode(record, plan)
    return dict(sources)


def encode(record: Record, plan: Plan) -> Encoded:
    """Load, convert, cut and resize one image and encode it as PNG."""
    image = crop_and_resize(convert(record.load(), plan.channels, record.origin), plan.image_size)
    png = encode_png(as_tensor(image, plan.channels))
    part = part_of(record.key, plan.heldout_fraction)
    return Encoded(png, Sample(hashlib.sha256(png).hexdigest(), record.label, part), record.origin)


def convert(image: Image.Image, channels: int, origin: str) -> Image.Image:
    """Convert an image to grey or RGB before it is resized: a palette cannot be interpolated.

    What is transparent shows white, as on a page: the colour that is stored there is nothing that anybody sees.

    Raises:
        BadInput: its grey levels have more than 8 bits; a conversion would clip them.
    """
    if image.mode.startswith(("I", "F")):
        raise BadInput(f"{origin} has grey levels of more than 8 bits: convert it to 8 bits")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return image.convert("L" if channels == 1 else "RGB")
