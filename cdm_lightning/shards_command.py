"""The command line of `shards`."""

from pathlib import Path
from typing import Any, Literal

from cdm_lightning.errors import BadInput
from cdm_lightning.parser import Parser, new_parser
from datamodules.image_defaults import OF_ORIGIN
from datamodules.manifest import MANIFEST
from datamodules.plan import Plan
from datamodules.splits import default_split
from datamodules.writer import write_shards


def shards_parser() -> Parser:
    """Return the parser of `shards`."""
    parser = new_parser(
        "shards", "Write the images of every source, and of public, as WebDataset tars with a manifest."
    )
    origin = Literal["cifar10", "fashion_mnist", "digits", "folder", "list"]
    parser.add_argument("--from", type=origin, required=True, help="where the images come from")
    parser.add_argument(
        "--input", type=str | None, default=None, help="folder of images, CSV file, or folder of a torchvision data set"
    )
    parser.add_argument("--out", type=str, required=True, help="gets one folder per source")
    parser.add_argument(
        "--split",
        type=str | None,
        default=None,
        help="what makes a source: class, folder, list, random:N; by default the owners that it names, or class",
    )
    parser.add_argument("--size", type=int | None, default=None, help="height and width; by default the data set's")
    parser.add_argument("--channels", type=Literal[1, 3] | None, default=None, help="1 grey, 3 colour; as --size")
    parser.add_argument("--shards-per-source", type=int, default=4, help="tars that a source's samples are spread over")
    parser.add_argument(
        "--public-classes", type=list[str | int], default=[], help="classes, by name or index, that go to public"
    )
    parser.add_argument(
        "--public-fraction", type=float, default=0.0, help="fraction of every class that goes to public"
    )
    parser.add_argument("--heldout-fraction", type=float, default=0.1, help="fraction held out from training")
    parser.add_argument("--licence", type=str, default="unknown", help="noted in the manifest")
    parser.add_argument(
        "--drop-from-public",
        action="store_true",
        help="an image that is in public and in a source leaves public, not the source",
    )
    return parser


def write_from(config: Any) -> None:
    """Write the shards that a parsed command line describes, and say how many images each source got."""
    origin, out = config["from"], Path(config.out)
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; name a folder")
    image = OF_ORIGIN[origin]
    plan = Plan(
        from_=origin,
        input=config.input,
        split=default_split(origin) if config.split is None else config.split,
        image_size=image.size if config.size is None else config.size,
        channels=image.channels if config.channels is None else config.channels,
        public_classes=config.public_classes,
        public_fraction=config.public_fraction,
        heldout_fraction=config.heldout_fraction,
        shards_per_source=config.shards_per_source,
        licence=config.licence,
        drop_from_public=config.drop_from_public,
    )
    counts = write_shards(out, plan)
    for source, count in counts.items():
        print(f"{source}: {count} images")
    print(f"shards of {len(counts)} sources are in {out}")
    if left := sorted({path.parent.name for path in out.glob(f"*/{MANIFEST}")} - counts.keys()):
        print(f"left there as they were, since none of these images are theirs: {', '.join(left)}")
