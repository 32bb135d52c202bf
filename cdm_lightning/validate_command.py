"""The command line of `validate`: a store, its held-out images, and the table of what is measured."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import open_extractor
from cdm_lightning.fit_record import FitRecord, fit_record
from cdm_lightning.generation import Settings
from cdm_lightning.images import spread
from cdm_lightning.measurement import COMPOSED, measure, report
from cdm_lightning.metrics import score_name
from cdm_lightning.packing import open_compartments
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.private_runs import learned_others
from cdm_lightning.reference import HELDOUT_IMAGES
from cdm_lightning.seeding import SEEDS
from cdm_lightning.source_choice import add_source_options, chosen_sources
from cdm_lightning.store import EXCLUSIONS, Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.text_tables import aligned
from datamodules import ShardDataModule
from datamodules.manifest import ImageShape
from datamodules.names import HELDOUT

SAMPLED_WITH = ("seed", "sampler", "steps", "device")
NOTHING = "-"
log = logging.getLogger(__name__)


def validate_parser() -> Parser:
    """Return the parser of `validate`."""
    parser = new_parser("validate", "Measure the composed model of chosen sources, and each of them, on their images.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    add_image_options(parser)
    parser.add_argument(
        "--extractor",
        type=Literal["effnet-lite0", "inception", "none"],
        default="effnet-lite0",
        help="makes the features that are compared; with inception the Frechet distance is the FID; none: no samples",
    )
    add_inception_option(parser)
    parser.add_argument("--n", type=int, default=96, help="sampled images, at least 2")
    parser.add_argument(
        "--strategy", type=Strategy, default=None, help="of `sample`; by default the one that the fit recorded"
    )
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SAMPLED_WITH))
    parser.add_argument("--json", type=str | None, default=None, help="also write all numbers to this file")
    return parser


def add_image_options(parser: Parser) -> None:
    """Add the options that say where held-out images are; see `place_of_images`."""
    parser.add_argument(
        "--root", type=str | None, default=None, help="folder of the shards; by default the one that the fit recorded"
    )
    parser.add_argument(
        "--exclude", type=str | None, default=None, help="file of keys, one a line, that are not used; as --root"
    )


def add_inception_option(parser: Parser) -> None:
    """Add the option that says where the weights of the extractor `inception` are."""
    parser.add_argument(
        "--inception", type=str | None, default=None, help="file of its weights; by default torch-fidelity's download"
    )


def validate(config: Any) -> dict[str, Any]:
    """Measure what a parsed command line names, and return the report; see `cdm_lightning.measurement.report`.

    Raises:
        BadInput: the store, a source, the held-out images or a setting cannot be used.
    """
    store = Store.open(Path(config.store))
    sources, record = chosen_sources(config), fit_record(store)
    settings = settings_of(config, record)
    root, exclude = place_of_images(config, record, store)
    held_out = heldout_images(store, sources, root, exclude)
    extractor = None if config.extractor == "none" else open_extractor(config.extractor, config.inception)
    compartments = open_compartments(store, sources, sigma_switch=None, device=settings.device)
    found = measure(compartments, held_out, settings, extractor, store.runs / "sources")
    place = {"root": str(root), "exclude": exclude}
    return report(store, compartments, held_out, settings, config.extractor, found) | place


def settings_of(config: Any, record: FitRecord) -> Settings:
    """Return how the command line says that images are sampled.

    Raises:
        BadInput: a number is out of range.
    """
    if config.n < 2:
        raise BadInput(f"--n is {config.n}; expected at least 2")
    check_seed(config.seed)
    strategy = config.strategy or record.strategy or "routed"
    return Settings(n=config.n, strategy=strategy, **{name: config[name] for name in SAMPLED_WITH})


def check_seed(seed: int) -> None:
    """Raise BadInput unless the seed can be that of KID's subsets."""
    if not 0 <= seed < SEEDS:
        raise BadInput(f"--seed is {seed}; expected 0 to {SEEDS - 1}")


def place_of_images(config: Any, record: FitRecord, store: Store) -> tuple[Path, str | None]:
    """Return the folder of the shards and the file of keys that are not used: given, or recorded by the fit.

    Raises:
        BadInput: there is no such folder, or none is recorded.
    """
    place = config.root or record.root
    if not place:
        raise BadInput(f"{store.runs} does not say where the held-out images are: give --root DIR, of the shards")
    root = Path(place)
    if not root.is_dir():
        where = "" if root.is_absolute() else f", seen from the working folder {Path.cwd()}"
        whose = "--root" if config.root else "the root of the fit"
        raise BadInput(f"{whose}, '{root}', is no folder{where}: give --root DIR, where the shards are now")
    return root, config.exclude or (None if config.root else record.exclude)


def shard_data(store: Store, root: Path, exclude: str | None) -> ShardDataModule:
    """Return what reads the shards in `root` of a store's sources, without the samples that the store has forgotten."""
    channels, size, _ = store.info.image_shape
    data = ShardDataModule(str(root), image_size=size, channels=channels, exclude=exclude)  # type: ignore[arg-type]
    data.forgotten = store.path / EXCLUSIONS
    return data


def heldout_images(store: Store, sources: list[str], root: Path, exclude: str | None) -> dict[str, Tensor]:
    """Return held-out images, uint8 [n <= HELDOUT_IMAGES, channel, height, width], of every source that has shards.

    Raises:
        BadInput: none of the sources has any, or they are not as large as those of the store.
        ShardError: the shards are not what their manifest says.
    """
    (channels, size, _), data = store.info.image_shape, shard_data(store, root, exclude)
    there = set(data.available_sources())
    chosen = [source for source in sources if source in there]
    for source in chosen:
        image = data.manifest(source).image
        if image != ImageShape(size, channels):
            raise BadInput(
                f"source '{source}' in '{root}' has images of size {image.size} with {image.channels} channels, but "
                f"the store's are of size {size} with {channels}: give --root DIR, with the shards of its fit"
            )
    tell_other_images(store, data, chosen, root)
    images = {source: spread(data.images(source, HELDOUT)[1], HELDOUT_IMAGES) for source in chosen}
    if not any(map(len, images.values())):
        raise BadInput(f"'{root}' has no held-out images of {', '.join(sources)}: give --root DIR, with their shards")
    return images


def tell_other_images(store: Store, data: ShardDataModule, sources: Sequence[str], root: Path) -> None:
    """Log which sources were not fitted on what the shards hold now: so held-out images may be no new ones."""
    for source in sources:
        if learned_others(store, source, data.data_sha256(source)):
            log.warning(
                "source '%s' was fitted on other images than %s has: those held out there it may have been trained on",
                source,
                root,
            )


def table(found: dict[str, Any]) -> str:
    """Return a report as text: a row for the composed model and one per source, attribution, remarks, settings."""
    scores: dict[str, dict[str, float] | None] = found["scores"]
    counts = {COMPOSED: sum(found["reference_images"].values())} | found["reference_images"]
    distance = "FID" if found["extractor"] == "inception" else "Frechet"
    header = [f"KID@{found['n']}", f"{distance}@{found['n']}", "precision", "recall"] if scores else []
    rows = [["model", "held-out", *header, f"composed error at {found['heldout_error_sigma']:g}"]]
    for name in (COMPOSED, *found["sources"]):
        measured = _cells(scores[name], found) if scores else []
        rows.append([name, str(counts[name]), *measured, _cell(found["heldout_error"].get(name), 5)])
    return "\n".join(
        [aligned(rows), "", _attribution_line(found["attribution"]), *found["remarks"], _settings_line(found)]
    )


def _cells(scores: dict[str, float] | None, found: dict[str, Any]) -> list[str]:
    if scores is None:
        return [NOTHING] * 4
    names = ("kid", "kid_deviation", "frechet", "precision", "recall")
    kid, deviation, *rest = (scores[score_name(name, found["n"], found["extractor"])] for name in names)
    return [f"{kid:.4f} ± {deviation:.4f}", *(_cell(value, 3) for value in rest)]


def _cell(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _attribution_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "attribution: not measured"
    return (
        f"attribution: accuracy {found['accuracy']:.1%}, credit of the true source {found['mean_credit']:.3f}, "
        f"cross-entropy {found['cross_entropy']:.3f} nats, calibration error {found['calibration_error']:.3f}, "
        f"{'' if found['informative'] else 'not '}informative"
    )


def _settings_line(found: dict[str, Any]) -> str:
    sampled = f"n {found['n']}, {found['sampler']} {found['steps']} steps, {found['strategy']}, seed {found['seed']}, "
    return f"{sampled if found['scores'] else ''}extractor {found['extractor']}, held-out images of {found['root']}"
