"""The command line of `attribute`: given images, and to which sources each is credited."""

import csv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cdm_lightning.attribution import heldout_credits
from cdm_lightning.attribution_report import csv_rows, image_row
from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_bars import annotated
from cdm_lightning.credit_methods import OF_COALITIONS, Credit, CreditSettings, credit
from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import open_extractor
from cdm_lightning.generation import Settings, finite_or_text
from cdm_lightning.given_images import check_not_given, readable_images
from cdm_lightning.images import encode_png, from_uint8
from cdm_lightning.json_option import check_place
from cdm_lightning.nearest_images import Shards
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.sheets import enlarged
from cdm_lightning.source_choice import add_source_options, chosen_sources
from cdm_lightning.store import Store
from cdm_lightning.validate_command import add_image_options, add_inception_option
from cdm_lightning.versions import versions

PACKAGES = ("cdm_lightning", "torch", "pillow", "timm")
COLUMNS = 8  # images in a row of the picture
FILES = ("csv", "picture")


def attribute_parser() -> Parser:
    """Return the parser of `attribute`."""
    parser = new_parser("attribute", "Say to which sources given images are credited, and how sure that is.")
    parser.add_argument("images", type=str, nargs="+", help="PNG or JPEG files, folders of them, or tars")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    parser.add_class_arguments(CreditSettings)
    add_image_options(parser)
    parser.add_argument("--nearest", type=int, default=3, help="training images of the credited source, 0 for none")
    parser.add_argument(
        "--extractor",
        type=Literal["effnet-lite0", "inception", "none"],
        default="none",
        help="also finds the nearest training images by its features",
    )
    add_inception_option(parser)
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - {"batch_size", "device"})
    parser.add_argument(
        "--picture", "--out", type=str | None, default=None, help="PNG file of the images and their credits"
    )
    parser.add_argument("--csv", type=str | None, default=None, help="CSV file, a line per image and source")
    parser.add_argument("--json", type=str | None, default=None, help="also write the report to this file")
    return parser


def check(config: Any) -> None:
    """Raise BadInput for options that are out of range or cannot be written."""
    if config.nearest < 0:
        raise BadInput(f"--nearest is {config.nearest}; expected a number of images, or 0 for none")
    for name in FILES:
        check_place(name, config[name])
    places = [Path(config[name]).resolve() for name in (*FILES, "json") if config[name] is not None]
    if len(set(places)) < len(places):
        raise BadInput("--csv, --picture and --json name the same file twice: give each its own")
    for name in (*FILES, "json"):
        check_not_given(f"--{name}", config[name], config.images)


def attribute(config: Any) -> dict[str, Any]:
    """Credit the images that a parsed command line names, write `csv` and `picture`, and return the report.

    Raises:
        BadInput: the store, a source or a setting cannot be used, or no image can.
    """
    check(config)
    settings = CreditSettings(**{name: config[name] for name in CreditSettings.__dataclass_fields__})
    Settings(batch_size=config.batch_size, device=config.device)  # checks both
    store = Store.open(Path(config.store))
    sources = chosen_sources(config)
    given = readable_images(config.images, store.info.image_shape)
    shards = Shards.of(config, store, sources)
    extractor = None if config.extractor == "none" else open_extractor(config.extractor, config.inception)
    compartments = open_compartments(store, sources, sigma_switch=None, device=config.device)
    credits = list(_credits(compartments, given.pixels, settings, config))
    rows = [image_row(compartments, settings, one, k) for one in credits for k in range(one.value.shape[1])]
    for row, name in zip(rows, given.names, strict=True):
        row["image"] = name
    if config.nearest:
        shards.add_nearest(rows, given.pixels, config.nearest, extractor)
    report = _circumstances(store, compartments, settings, len(rows)) | {
        "root": None if shards.root is None else str(shards.root),
        "extractor": config.extractor,
        **_informative(compartments, shards.heldout, config.device),
        "images": rows,
        "refused": given.refused,
    }
    _write(config, store, report, given.pixels, credits)
    return report


def _circumstances(store: Store, compartments: Compartments, settings: CreditSettings, images: int) -> dict[str, Any]:
    """Return what the credits of some images depend on, and what they cost."""
    return {
        "store": str(store.path),
        "sources": list(compartments),
        **asdict(settings),
        "unit": "nats" if settings.method in OF_COALITIONS else "share",
        "sigma": compartments.public.calibration.floor,
        "sigma_switch": finite_or_text(compartments.sigma_switch),
        "network_evaluations_per_image": compartments.evaluations / images,
        "backbone_sha256": store.info.backbone_sha256,
        "compartments_sha256": store.tensors_sha256(compartments),
        "versions": versions(*PACKAGES),
        "threads": torch.get_num_threads(),
    }


def _credits(compartments: Compartments, pixels: Tensor, settings: CreditSettings, config: Any) -> Iterator[Credit]:
    """Yield the credit of each batch of images."""
    for some in pixels.split(config.batch_size):
        with torch.inference_mode():
            yield credit(compartments, from_uint8(some).to(config.device), settings)


def _informative(compartments: Compartments, heldout: dict[str, Tensor], device: str) -> dict[str, Any]:
    """Return how the closed forms credit held-out images, as `validate` does, and if that says more than nothing."""
    floor = compartments.public.calibration.floor
    images = {source: some.to(device) for source, some in heldout.items()}
    found = heldout_credits(compartments.composed("posterior"), floor, images) if images else None
    without = [source for source in compartments if heldout and not len(heldout.get(source, ()))]
    credits = None if found is None else found.credits
    return {
        "informative": None if credits is None else credits.informative,
        "heldout": None if credits is None else credits.scalars(),
        "without_heldout": without,
    }


def _write(config: Any, store: Store, report: dict[str, Any], pixels: Tensor, credits: list[Credit]) -> None:
    """Write the CSV file and the picture, if they are asked for, and note in the store where they are."""
    for path in (config[name] for name in FILES if config[name] is not None):
        note_output(store.runs, Path(path), report["sources"])
    if config.csv is not None:
        with Path(config.csv).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows(csv_rows(report))
    if config.picture is not None:
        cut = config.method in OF_COALITIONS and any(row["credits"] is None for row in report["images"])
        shares = torch.cat([one.positive if cut else one.shares for one in credits], 1)
        title = f"{config.method}: {'parts of what is positive' if cut else 'credits'}"
        picture = annotated(enlarged(pixels), shares, report["sources"], min(len(pixels), COLUMNS), title)
        Path(config.picture).write_bytes(encode_png(picture))
