"""The command line of `report`: one page for people about a store, its samples, its credits and its history."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figures import courses, curves, image_rows, matrix, reliability, shares
from cdm_lightning import ledger
from cdm_lightning.attribution import SIGMAS
from cdm_lightning.compartments import Compartments
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.fit_record import FitRecord, fit_record
from cdm_lightning.generation import Settings
from cdm_lightning.json_option import check_place
from cdm_lightning.measurement import COMPOSED
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.report import Findings, cards_of, credited, history, sampled
from cdm_lightning.report_audit import audited
from cdm_lightning.report_page import page
from cdm_lightning.source_choice import add_source_options, chosen_sources
from cdm_lightning.store import LEDGER, PUBLIC, Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.tensor_files import write_atomic
from cdm_lightning.validate_command import (
    SAMPLED_WITH,
    add_image_options,
    heldout_images,
    place_of_images,
    settings_of,
)
from cdm_lightning.verification import faults
from cdm_lightning.versions import versions

PACKAGES = ("cdm_lightning", "torch", "lightning", "matplotlib")


def report_parser() -> Parser:
    """Return the parser of `report`."""
    parser = new_parser("report", "Write one page for people: what a store holds, makes, credits, and its history.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    parser.add_argument("--out", type=str, required=True, help="the HTML file")
    add_image_options(parser)
    parser.add_argument("--audit", type=str | None, default=None, help="what `audit --json FILE` wrote of this store")
    parser.add_argument("--n", type=int, default=96, help="sampled images that shares are of, at least 2")
    parser.add_argument(
        "--strategy", type=Strategy, default=None, help="of `sample`; by default the one that the fit recorded"
    )
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SAMPLED_WITH))
    return parser


def write_page(config: Any) -> None:
    """Write the page that a parsed command line asks for, as a whole or not.

    Raises:
        BadInput: the store, a source, the audit, the place of the page, or a setting cannot be used.
    """
    check_place("out", config.out)
    store = Store.open(Path(config.store))
    sources, record = chosen_sources(config), fit_record(store)
    settings = settings_of(config, record)
    audit = None if config.audit is None else read_audit(Path(config.audit), store, sources)
    held_out = images_of(config, record, store, sources)
    compartments = open_compartments(store, sources, sigma_switch=None, device=settings.device)
    found = Findings(
        cards_of(store, sources),
        faults(store) if config.user is None else None,
        history(store, None if config.user is None else [*sources, PUBLIC]),
        chain_of(store),
        sampled(compartments, settings),
        credited(compartments, settings, held_out),
        {source: len(images) for source, images in held_out.items()},
    )
    facts = {"store": str(store.path)} | facts_of(store, compartments, settings, held_out)
    text = page(store.path.resolve().name, found, pictures_of(found, compartments), audit, facts)
    note_output(store.runs, Path(config.out), sources)
    write_atomic(Path(config.out), text.encode())


def images_of(config: Any, record: FitRecord, store: Store, sources: list[str]) -> dict[str, Tensor]:
    """Return held-out images by source; none, if nobody says where they are and the recorded place is gone.

    Raises:
        BadInput: the place that the command line names has no such images.
    """
    try:
        return heldout_images(store, sources, *place_of_images(config, record, store))
    except BadInput:
        if config.root is not None:
            raise
        return {}


def chain_of(store: Store) -> str | None:
    """Return what is wrong with the chain of a store's ledger, or None."""
    try:
        ledger.verify(store.path / LEDGER)
    except StoreError as error:
        return str(error)
    return None


def read_audit(path: Path, store: Store, sources: list[str]) -> dict[str, Any]:
    """Return the report of `audit` in a file.

    Raises:
        BadInput: it is none, or one of other sources or of other compartments than the store has now.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        hashes, rows = report["compartments_sha256"], report["rows"]
        audited(report)  # all that the page shows of it is there
    except OSError as error:
        raise BadInput(
            f"--audit {path} cannot be read ({error.strerror}): give what `audit --json FILE` wrote"
        ) from error
    except (LookupError, ValueError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise BadInput(f"--audit {path} is no report of `audit`: give what `audit --json FILE` wrote") from error
    if hashes != store.compartments_sha256(sources) or not rows:
        raise BadInput(
            f"--audit {path} is of other compartments than {', '.join(sources)} in {store.path} now: run `audit` again "
            "for the same sources"
        )
    return dict(report)


def facts_of(
    store: Store, compartments: Compartments, settings: Settings, held_out: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return what repeats a page, by name."""
    parameters = sum(parameter.numel() for parameter in compartments.backbone.parameters())
    return {
        "sources": ", ".join(compartments),
        "strategy": settings.strategy,
        "samples": f"{settings.n}, {settings.sampler} {settings.steps} steps, seed {settings.seed}, {settings.device}",
        "sigma_switch": f"{compartments.sigma_switch:g}",
        "held-out images": ", ".join(f"{source} {len(some)}" for source, some in held_out.items()) or "none",
        "backbone": f"{parameters:,} parameters, sha256 {store.info.backbone_sha256}",
        "public images": f"sha256 {store.info.public_data_sha256}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions(*PACKAGES).items()),
        "threads": str(torch.get_num_threads()),
    }


def pictures_of(found: Findings, compartments: Compartments) -> dict[str, str]:
    """Return the pictures of a page as data URIs, by name."""
    made, sources, switch = found.sampled, list(compartments), compartments.sigma_switch
    figures = {
        "samples": image_rows(dict(made.rows), "", sources),
        "courses": courses(made.rows[COMPOSED], made.sigmas, made.courses, sources, switch),
        "path": shares(made.sigmas, made.weights, sources, switch),
    }
    if found.credited is not None:
        by_sigma = found.credited.by_sigma
        lines = {
            "accuracy": [level.accuracy for level in by_sigma],
            "weight of the true owner": [level.mean_credit for level in by_sigma],
            "calibration error": [level.calibration_error for level in by_sigma],
            "knowing nothing": [1 / len(sources)] * len(by_sigma),
        }
        bins = found.credited.credits.bins
        figures |= {
            "matrix": matrix(found.credited.credits.matrix, sources, ""),
            "reliability": reliability(
                [one.confidence for one in bins], [one.accuracy for one in bins], [one.images for one in bins]
            ),
            "by_sigma": curves(SIGMAS, lines, "", "share"),
        }
    return {name: data_uri(figure) for name, figure in figures.items()}


def data_uri(figure: Figure) -> str:
    """Return a figure as a PNG inside a URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
