"""`sample`: images of chosen sources of a store as pictures, with a grid and each image's credits."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.generation import Settings, batched, check_sampled, finite_or_text, sample_batch
from cdm_lightning.guidance import GuidedDenoiser
from cdm_lightning.image_folder import credited_grid, image_rows, make_folder, write_pictures
from cdm_lightning.images import to_uint8
from cdm_lightning.outputs import check_folder, note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.source_choice import add_source_options, chosen_sources
from cdm_lightning.store import Store


def sample_parser() -> Parser:
    """Return the parser of `sample`."""
    parser = new_parser("sample", "Sample images from chosen sources of a store, with each image's credits.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    parser.add_argument("--out", type=str, required=True, help="folder for 00000.png, ..., grid.png and credits.json")
    parser.add_argument("--annotate", action="store_true", help="draw a bar of credits below each image of grid.png")
    parser.add_argument("--json", type=str | None, default=None, help="also write the report to this file")
    parser.add_class_arguments(Settings)
    return parser


def generate(config: Any) -> dict[str, Any]:
    """Sample into a folder: 00000.png, ..., grid.png and credits.json; return what credits.json holds.

    Raises:
        BadInput: the store, a source, or a setting cannot be used.
    """
    settings = Settings(**{name: config[name] for name in Settings.__dataclass_fields__})
    sources, out = chosen_sources(config), Path(config.out)
    check_folder(out)
    store = Store.open(Path(config.store))
    sha256 = store.tensors_sha256(sources)
    switch = None if settings.sigma_switch is None else float(settings.sigma_switch)
    compartments = open_compartments(store, sources, sigma_switch=switch, device=settings.device)
    branches = branches_of(compartments, settings)
    composed = branches[-1].composed(settings.strategy)
    model = guided(composed, compartments, settings)
    credited, floor = branches[-1].credited(), compartments.public.calibration.floor
    taking_part = list(branches[-1] if settings.guidance == 1 else compartments)
    note_output(store.runs, out, taking_part)
    pictures: list[Tensor] = []
    rows: list[dict[str, Any]] = []
    for indices in batched(settings.n, settings.batch_size):
        batch = sample_batch(model, store.info.image_shape, indices, settings)
        check_sampled(batch.images)
        pictures.append(to_uint8(batch.images).cpu())
        rows += image_rows(credited, batch, indices, floor, settings.seed)
    report = {
        "store": config.store,
        "sources": taking_part,
        **{name: value for name, value in asdict(settings).items() if name not in ("batch_size", "device")},
        "sigma_switch": finite_or_text(compartments.sigma_switch),
        "network_evaluations_per_image": sum(branch.evaluations for branch in branches) / settings.n,
        "backbone_sha256": store.info.backbone_sha256,
        "torch": torch.__version__,
        "images": rows,
    }
    images = torch.cat(pictures)
    make_folder(out, store, taking_part, sha256)
    write_pictures(out, images, report, credited_grid(images, report) if config.annotate else None)
    return report


def branches_of(compartments: Compartments, settings: Settings) -> list[Compartments]:
    """Return the compartments, and those of the class if one is asked for: images are credited to the last ones.

    Raises:
        BadInput: no source has the class.
    """
    if settings.label is None:
        return [compartments]
    under = compartments.under(settings.label)
    return [compartments] if settings.guidance == 0 else [compartments, under]


def guided(
    composed: ComposedDenoiser, everything: Compartments, settings: Settings
) -> ComposedDenoiser | GuidedDenoiser:
    """Return the composed model of a class, drawn towards the class or away from it if the settings say so."""
    if settings.guidance in (0, 1):
        return composed
    return GuidedDenoiser(composed, everything.composed(settings.strategy), settings.guidance)
