"""The command line of `evaluate`: every way to sample from a store, and other stores, in one table.

With `--by_class` images are sampled under classes, which occur as often as among the training images of the sources
(`stratification`); the row `public` has no class and is sampled without one. The held-out images are those of all
classes together either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from callbacks.figures import image_rows
from cdm_lightning.classifier_training import keep_classifier
from cdm_lightning.comparison import Comparison, environment
from cdm_lightning.comparison_table import markdown
from cdm_lightning.contenders import OTHER_COMPARTMENTS, Contender, Opened
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.evaluation_images import LEAST, EvaluationImages
from cdm_lightning.extractors import open_extractor
from cdm_lightning.fit_record import fit_record
from cdm_lightning.generation import Settings
from cdm_lightning.image_folder import changed_since
from cdm_lightning.images import from_uint8
from cdm_lightning.intervals import ratio_interval
from cdm_lightning.line_up import note_outputs, opened_models
from cdm_lightning.metrics import score_name
from cdm_lightning.outputs import check_folder
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.proportions import confusion_of, proportions
from cdm_lightning.source_choice import add_source_options, check_against, chosen_sources
from cdm_lightning.store import Store
from cdm_lightning.stratification import class_counts, quotas
from cdm_lightning.tensor_files import write_atomic, write_report
from cdm_lightning.validate_command import add_image_options, add_inception_option, check_seed, place_of_images
from cdm_lightning.yardstick import JUDGE_IMAGES
from datamodules.names import HELDOUT

SAMPLED_WITH = ("seed", "sampler", "steps", "batch_size", "device")
PICTURES = 12  # columns of the picture
BASE = "routed"
ASSIGN = "assign"
CLASSIFIER_FILE = "classifier.safetensors"
DEFAULT_EXTRACTOR = "effnet-lite0"
NOT_SHOWN = ("identity", "replicates", "named", "yardstick")  # of a row, in the table


def evaluate_parser() -> Parser:
    """Return the parser of `evaluate`."""
    parser = new_parser("evaluate", "Compare every way to sample from a store, and other stores, in one table.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the tables, samples.png, and the rows as they come"
    )
    add_row_options(parser)
    add_image_options(parser)
    add_measure_options(parser)
    parser.add_argument("--n", type=int, default=2000, help=f"sampled images, at least {LEAST}")
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SAMPLED_WITH))
    parser.add_argument("--json", type=str | None, default=None, help="also write the table as JSON to this file")
    return parser


def add_row_options(parser: Parser) -> None:
    """Add the options that say what is compared."""
    parser.add_argument(
        "--strategies",
        type=str,
        nargs="+",
        default=None,
        help="rows: closed_form (no network), public (no source), strategies of `sample`; only if asked for, and not "
        "exact: classifier (weights of one classifier of all sources), soup (averaged prompts); NAME@SIGMA has its "
        "closed forms above another noise level, NAME@inf nowhere; by default all others that the store allows",
    )
    against = "LABEL=STORE: other stores, a row each; LABEL@SIGMA=STORE as above"
    parser.add_argument("--against", type=str, nargs="+", default=None, help=against)
    base = "row that the others are divided by; by default routed, or the first"
    parser.add_argument("--base", type=str | None, default=None, help=base)
    parser.add_argument(
        "--by_class",
        action="store_true",
        help="sample images under classes, as often as among the sources' training images; all stores need class "
        "labels; public has no class and is sampled without",
    )


def add_measure_options(parser: Parser) -> None:
    """Add the options that say what samples are compared in."""
    parser.add_argument(
        "--extractor",
        type=Literal["effnet-lite0", "inception"],
        default=DEFAULT_EXTRACTOR,
        help="makes the features that are compared; with inception the Frechet distance is the FID",
    )
    add_inception_option(parser)
    parser.add_argument(
        "--judge_images",
        type=int,
        default=JUDGE_IMAGES,
        help="training images of each source that the judge of its share among the samples learns from; 0: no judge",
    )


def evaluate(config: Any) -> dict[str, Any]:
    """Compare what a parsed command line names, write tables and picture into its folder, return what the JSON holds.

    Raises:
        BadInput: a store, a source, a row, the images or a setting cannot be used.
    """
    settings, out = settings_of(config), Path(config.out)
    store = Store.open(Path(config.store))
    sources = chosen_sources(config)
    sha256 = store.tensors_sha256(sources)
    check_against(config)
    names, opponents, kept = listed(config.strategies), config.against or [], out / "features"
    classifier = kept / CLASSIFIER_FILE
    models = opened_models(store, sources, names, opponents, config.device, config.by_class, classifier)
    base = chosen_base(config.base, list(models))
    root, exclude = place_of_images(config, fit_record(store), store)
    images = EvaluationImages(store, sources, root, exclude, config.judge_images)
    extractor = open_extractor(config.extractor, config.inception)
    note_outputs(out, models)
    (out / "rows").mkdir(exist_ok=True)
    make_yardstick = partial(images.yardstick, extractor, kept)
    comparison = Comparison(out / "rows", settings, extractor, images.identity(), make_yardstick)
    train_classifier(list(models.values()), images, settings)
    order = [base, *(name for name in models if name != base)]
    rows = {name: comparison.row(*models[name], *models[base]) for name in order}
    if changed := changed_since(store, sources, sha256):
        raise BadInput(f"{changed} while its rows were made: delete {out}, which has images of it, or evaluate anew")
    alone = proportions_alone(models, rows, images.prior(), settings)
    shares = quotas(class_counts(store, sources), settings.n) if config.by_class else None
    report = {
        "store": str(store.path),
        "sources": sources,
        "root": str(root),
        "exclude": exclude,
        "split": HELDOUT,
        **described(settings, extractor.name, shares),
        **compared(rows, base, list(models), score_name("frechet", settings.n, extractor.name), alone),
    }
    write(out, report, {name: comparison.samples(*models[name]).images[:PICTURES] for name in models})
    return report


def described(settings: Settings, extractor: str, classes: Mapping[str, int] | None) -> dict[str, Any]:
    """Return what table.json says of how images were sampled; `classes` is how many of each, None without classes."""
    return {
        "by_class": classes is not None,
        "classes": classes,
        "extractor": extractor,
        **{name: getattr(settings, name) for name in ("n", *SAMPLED_WITH)},
        **environment(),
    }


def compared(
    rows: Mapping[str, dict[str, Any]], base: str, order: list[str], frechet: str, alone: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what table.json says of the rows and of what they were measured with; see `shown`."""
    found = [shown(rows[name], rows[base], frechet) | {"proportions_alone": alone.get(name)} for name in order]
    return {"base": base, **rows[base]["yardstick"], "rows": found}


def settings_of(config: Any) -> Settings:
    """Return how the command line says that images are sampled.

    Raises:
        BadInput: a number is out of range, or the folder is none.
    """
    if config.n < LEAST:
        raise BadInput(f"--n is {config.n}; expected at least {LEAST}")
    if config.judge_images < 0:
        raise BadInput(f"--judge_images is {config.judge_images}; expected how many, or 0 for no judge")
    check_seed(config.seed)
    check_folder(Path(config.out))
    return Settings(n=config.n, **{name: config[name] for name in SAMPLED_WITH})


def listed(given: list[str] | None) -> list[str]:
    """Return the names in words of a command line: `a b`, `a,b` or `[a, b]`."""
    words = " ".join(given or []).translate(str.maketrans("[],", "   "))
    return words.split()


def chosen_base(name: str | None, rows: list[str]) -> str:
    """Return the name of the row that the others are divided by.

    Raises:
        BadInput: there is no such row.
    """
    if name is None:
        return BASE if BASE in rows else rows[0]
    if name not in rows:
        raise BadInput(f"--base '{name}' is none of the rows, {', '.join(rows)}{did_you_mean(name, rows)}")
    return name


def train_classifier(models: Sequence[tuple[Contender, Opened]], images: EvaluationImages, settings: Settings) -> None:
    """Train the joint classifier of the rows that need it, if its file does not hold."""
    for contender, opened in models:
        if contender.classifier is not None:
            depends_on = {
                "backbone_sha256": Store.open(contender.store).info.backbone_sha256,
                "training": images.identity()["training"],
                "device": settings.device,
                **environment(),
            }
            keep_classifier(contender.classifier, opened.compartments, images.training, settings.seed, depends_on)


def proportions_alone(
    models: Mapping[str, tuple[Contender, Opened]],
    rows: Mapping[str, dict[str, Any]],
    prior: Mapping[str, float],
    settings: Settings,
) -> dict[str, dict[str, Any]]:
    """Return the proportions of sources by row, corrected by what the judge calls samples of each source alone.

    Such samples are those of the row `assign`. It is fair to rows of the same compartments alone: only their samples
    are, if the strategy is right, samples of the same sources, mixed. What the judge calls a source that `assign` never
    drew is not known; then there are none.
    """
    if ASSIGN not in models or rows[ASSIGN]["named"] is None:
        return {}
    contender, opened = models[ASSIGN]
    sources = list(prior)
    if contender.parts != ASSIGN or set(contender.sources) != set(prior):  # an opponent that is labelled so
        return {}
    true = torch.tensor([sources.index(source) for source in opened.drawn(settings.n, settings.seed)])
    confusion = confusion_of(true, torch.tensor(rows[ASSIGN]["named"]), len(sources))
    if not bool(confusion.sum(1).all()):
        return {}
    same = [name for name, (one, _) in models.items() if name != ASSIGN and contender.same_compartments(one)]
    return {
        name: asdict(proportions(torch.tensor(rows[name]["named"]), confusion, prior))
        for name in same
        if rows[name]["model"]["parts"] not in OTHER_COMPARTMENTS
    }


def shown(row: dict[str, Any], base: dict[str, Any], frechet: str) -> dict[str, Any]:
    """Return what table.json says of a row; `frechet` is the full name of the score that is divided by the base's."""
    values, replicates = (
        [one["scores"][frechet] for one in (row, base)],
        [torch.tensor(one["replicates"], dtype=torch.float64) for one in (row, base)],
    )
    ratio = asdict(ratio_interval(*values, *replicates))
    return {name: value for name, value in row.items() if name not in NOT_SHOWN} | {"frechet_ratio": ratio}


def table_name(extractor: str) -> str:
    """Return the name of both tables without its ending: each extractor has its own."""
    return "table" if extractor == DEFAULT_EXTRACTOR else f"table-{extractor}"


def write(out: Path, report: dict[str, Any], pictures: dict[str, Tensor]) -> None:
    """Write tables and samples.png; `pictures` is uint8 [column, channel, height, width] by row."""
    name = table_name(report["extractor"])
    write_report(out / f"{name}.json", report)
    write_atomic(out / f"{name}.md", markdown(report).encode())
    noise = "the same noise and class in each column" if report["by_class"] else "the same noise in each column"
    title = f"{report['sampler']} {report['steps']} steps, seed {report['seed']}, {noise}"
    figure = image_rows({row: from_uint8(images) for row, images in pictures.items()}, title, [])
    figure.savefig(out / "samples.png")
