"""The command line of `audit`: does a store reproduce training images, and can one tell who was in it?"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from callbacks.closest_pairs import closest_pairs
from cdm_lightning.audit import Audit, Found, Known
from cdm_lightning.audit_images import AuditImages
from cdm_lightning.canaries import LEAST_RELEASES, MOST_IMAGES, least_epsilon, scores
from cdm_lightning.card import Card
from cdm_lightning.comparison import environment
from cdm_lightning.contenders import CLOSED_FORM, PUBLIC, Contender, Opened
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.evaluate_command import listed
from cdm_lightning.extractors import FeatureExtractor, open_extractor
from cdm_lightning.fit_record import fit_record
from cdm_lightning.gaussian_mechanism import epsilon_of
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.generation import Settings
from cdm_lightning.images import from_uint8, spread
from cdm_lightning.line_up import note_outputs, opened_models, with_switch
from cdm_lightning.membership import FALSE_POSITIVES, LEAST, SIGMAS
from cdm_lightning.memorization import Images
from cdm_lightning.outputs import check_folder
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.privacy import Privacy
from cdm_lightning.private_gaussians import Frame
from cdm_lightning.reference import source_reference
from cdm_lightning.source_choice import add_source_options, check_against, chosen_sources
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.tensor_files import write_report
from cdm_lightning.validate_command import add_image_options, add_inception_option, check_seed, place_of_images

SAMPLED_WITH = ("seed", "sampler", "steps", "batch_size", "device")
ROWS = (CLOSED_FORM, PUBLIC, *get_args(Strategy))
PAIRS = 12  # of each row, in the picture
PICTURE, REPORT = "closest.png", "audit.json"


def audit_parser() -> Parser:
    """Return the parser of `audit`."""
    parser = new_parser("audit", "Does a store reproduce training images, and can one tell who was in it?")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    add_image_options(parser)
    parser.add_argument("--out", type=str | None, default=None, help=f"folder for {PICTURE} and {REPORT}")
    add_row_options(parser)
    add_measure_options(parser)
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SAMPLED_WITH))
    parser.add_argument("--json", type=str | None, default=None, help="also write the report to this file")
    return parser


def add_row_options(parser: Parser) -> None:
    """Add the options that say which models are audited."""
    rows = f"rows: {', '.join(ROWS)}; NAME@SIGMA as in `evaluate`; by default the fit's strategy and closed_form"
    parser.add_argument("--strategies", type=str, nargs="+", default=None, help=rows)
    against = "LABEL=STORE: other stores of the same images, a row each"
    parser.add_argument("--against", type=str, nargs="+", default=None, help=against)


def add_measure_options(parser: Parser) -> None:
    """Add the options that say what is measured, and with how much."""
    parser.add_argument(
        "--extractor",
        type=Literal["effnet-lite0", "inception", "none"],
        default="effnet-lite0",
        help="makes the features in which samples are also compared; none: pixels only",
    )
    add_inception_option(parser)
    parser.add_argument("--n", type=int, default=200, help="sampled images of each model")
    parser.add_argument(
        "--members",
        type=int,
        default=200,
        help=f"training images of a source, and held-out ones, whose denoising error is measured, at least {LEAST}",
    )
    parser.add_argument("--draws", type=int, default=4, help="noises of each image and level")
    parser.add_argument(
        "--canaries",
        type=int,
        default=0,
        help="releases of each private source's closed form, every second one with a canary, that bound its epsilon "
        "from below; 0 does without",
    )


def audit(config: Any) -> dict[str, Any]:
    """Audit what a parsed command line names, write picture and report into its folder, and return the report.

    Raises:
        BadInput: a store, a source, a row, the images or a setting cannot be used.
    """
    settings, store = settings_of(config), Store.open(Path(config.store))
    sources, record = chosen_sources(config), fit_record(store)
    check_canaries(config.canaries, store, sources)
    names = listed(config.strategies) or [record.strategy or "routed", CLOSED_FORM]
    check_rows(names)
    root, exclude = place_of_images(config, record, store)
    images = AuditImages(store, sources, root, exclude)
    models = opened_models(store, sources, names, config.against or [], config.device, by_class=False)
    for contender, _ in models.values():
        if contender.name not in names:
            images.check_opponent(contender.name, Store.open(contender.store))
    extractor = None if config.extractor == "none" else open_extractor(config.extractor, config.inception)
    with tempfile.TemporaryDirectory() as passing:
        kept = Path(config.out or passing) / "features"
        if config.out:
            note_outputs(Path(config.out), models)
        known = {source: known_of(kept, source, images, extractor) for source in sources}
    rows, pairs = audited(Audit(known, settings, extractor, config.members, config.draws), list(models.values()))
    report: dict[str, Any] = {"store": str(store.path), "sources": sources, "root": str(root), "exclude": exclude}
    report |= conditions(config, images) | {"compartments_sha256": store.compartments_sha256(sources)}
    report |= {"rows": rows, "closest": [pair_report(found, images) for found in pairs]}
    if config.canaries:
        report["canaries"] = canary_reports(store, images, config.canaries)
    if config.out:
        write(Path(config.out), report, pairs)
    return report


def conditions(config: Any, images: AuditImages) -> dict[str, Any]:
    """Return what repeats the numbers of an audit."""
    return {
        "images": {
            source: {"training": len(own), "heldout": len(images.heldout[source])}
            for source, own in images.training.items()
        },
        "extractor": config.extractor,
        "n": config.n,
        **{name: config[name] for name in SAMPLED_WITH},
        "members": config.members,
        "draws": config.draws,
        "sigmas": list(SIGMAS),
        "false_positives": FALSE_POSITIVES,
        **environment(),
    }


def check_canaries(releases: int, store: Store, sources: Sequence[str]) -> None:
    """Raise BadInput if the releases are too few to bound anything, or no source is private."""
    if releases and releases < LEAST_RELEASES:
        raise BadInput(f"--canaries is {releases}; expected 0, or at least {LEAST_RELEASES} releases")
    if releases and all(store.read_card(source).epsilon is None for source in sources):
        raise BadInput("--canaries bounds the epsilon of private sources, but none of --sources is private")


def canary_reports(store: Store, images: AuditImages, releases: int) -> list[dict[str, Any]]:
    """Return the `canary_report` of every private source of which there are images."""
    frame = Frame.of(unpack_backbone(*store.read_backbone())[1].closed_form)
    cards = [store.read_card(source) for source in images.training]
    return [
        canary_report(card, images.training[card.source], frame, releases) for card in cards if card.epsilon is not None
    ]


def canary_report(card: Card, images: Tensor, frame: Frame, releases: int) -> dict[str, Any]:
    """Return the bound on the epsilon of one release of a source's closed form beside the stated one, as JSON.

    Args:
        card: of a private source.
        images: its training images, uint8 [n, channel, height, width].
        frame: of `public`.
        releases: how many are made, none of which is kept.
    """
    stated, delta, clusters = card.settings["epsilon"], card.delta, card.settings.get("clusters", MOST_CLUSTERS)
    assert isinstance(stated, float)
    assert isinstance(clusters, int)
    assert delta is not None
    privacy = Privacy(stated, delta)
    if card.steps:
        privacy = replace(privacy, prompt_share=float(card.settings["prompt_share"] or 0))
    shares = privacy.shares(card.steps > 0)
    assert shares is not None
    flat = from_uint8(spread(images, MOST_IMAGES)).flatten(1).double()
    found = least_epsilon(*scores(flat, frame, shares.form, clusters, releases), delta)
    form = epsilon_of(shares.form, delta)
    said = {"source": card.source, "epsilon_at_least": found, "closed_form": form, "stated": stated, "delta": delta}
    return said | {"releases": releases, "images": len(flat)}


def settings_of(config: Any) -> Settings:
    """Return how the command line says that images are sampled.

    Raises:
        BadInput: a number is out of range, options do not fit together, or the folder is none.
    """
    for name, least in (("members", LEAST), ("draws", 1)):
        if config[name] < least:
            raise BadInput(f"--{name} is {config[name]}; expected at least {least}")
    check_seed(config.seed)
    check_against(config)
    if config.out is not None:
        check_folder(Path(config.out))
    return Settings(n=config.n, **{name: config[name] for name in SAMPLED_WITH})


def check_rows(names: Sequence[str]) -> None:
    """Raise BadInput for the name of a row that cannot be audited."""
    for name in names:
        if (row := with_switch(name)[0]) not in ROWS:
            raise BadInput(f"unknown row '{name}': expected one of {', '.join(ROWS)}{did_you_mean(row, ROWS)}")


def known_of(kept: Path, source: str, images: AuditImages, extractor: FeatureExtractor | None) -> Known:
    """Return the images of a source with their features, which are kept in a folder."""
    training, heldout = (
        Images(some, None if extractor is None else source_reference(kept, source, some, extractor).features)
        for some in (images.training[source], images.heldout[source])
    )
    return Known(training, heldout)


def audited(measure: Audit, models: Sequence[tuple[Contender, Opened]]) -> tuple[list[dict[str, Any]], list[Found]]:
    """Return the rows of all models, and the most suspicious pairs of each."""
    results = [measure.row(contender, opened) for contender, opened in models]
    return [row for row, _ in results], [found for _, pairs in results for found in pairs[:PAIRS]]


def pair_report(found: Found, images: AuditImages) -> dict[str, Any]:
    """Return a pair as JSON; sample k is that of `sample --seed`, of this group's sources."""
    return {"row": found.row, "group": found.group, "source": found.source} | {
        **asdict(found.pair),
        "training": images.keys[found.source][found.place],
    }


def write(out: Path, report: dict[str, Any], pairs: Sequence[Found]) -> None:
    """Write the report and the picture of the closest pairs."""
    write_report(out / REPORT, report)
    closest_pairs(pairs).savefig(out / PICTURE)
