"""The command line of `continual`: sources arrive one after another, some leave, and each time all is measured."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from callbacks.continual import log_row, matrix
from cdm_lightning.attribution import images_credited
from cdm_lightning.comparison import environment
from cdm_lightning.continual import check_heldout, check_store, measured, read_rows, write_record
from cdm_lightning.errors import BadInput
from cdm_lightning.evaluation import COMPOSED_IMAGES, COMPOSED_SIGMA
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fit_checks import check_data
from cdm_lightning.fit_command import ConfiguredRecipe, add_fit_options, fit_parser
from cdm_lightning.fitting import fit
from cdm_lightning.forget_command import forget, forget_parser, receipt
from cdm_lightning.forgetting import CONTINUAL_RUN
from cdm_lightning.generation import Settings
from cdm_lightning.outputs import note_output
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.run_sources import note_sources
from cdm_lightning.store import Store
from cdm_lightning.timeline import Event, timeline
from cdm_lightning.validate_command import heldout_images
from datamodules.names import HELDOUT

OWN_OPTIONS = ("order", "forget_at", "json")
log = logging.getLogger(__name__)


def continual_parser() -> Parser:
    """Return the parser of `continual`: that of `fit`, and what arrives and leaves."""
    parser = new_parser("continual", "Fit sources one after another into a store, forget some, measure every time.")
    parser.add_argument(
        "--order", type=list[str], required=True, help="sources as they arrive, one a step; in place of data.sources"
    )
    parser.add_argument(
        "--forget-at",
        type=list[str],
        default=[],
        help="who leaves when: a list of STEP:SOURCE, the source leaves after that step, counted from 1",
    )
    parser.add_argument(
        "--json", type=str, required=True, help="the record of the experiment, outside the store; it is gone on with"
    )
    add_fit_options(parser)
    return parser


def continual(config: Namespace) -> dict[str, Any]:
    """Run the experiment that a parsed command line names, or go on with it, and return its record.

    Raises:
        BadInput: order, data, store or record cannot be used.
    """
    events = timeline(config.order, config.forget_at)
    path, store = Path(config.json), Store(Path(config.store))
    check_place(path, store)
    fitted = fit_config(config)
    recipe = ConfiguredRecipe(fit_parser(), fitted)
    if recipe.training["ranks"] != 1:
        raise BadInput("continual runs in one process: set trainer.devices 1, or use fit and forget one by one")
    if store.has_backbone():
        store = Store.open(store.path)
    experiment = described(config, recipe, fitted)
    rows = read_rows(path, experiment)
    check_store(store, rows, events)
    for row in rows:
        log.info("%s: measured before", row["event"])
    if len(rows) < len(events):
        check_images(recipe, events[max(len(rows) - 1, 0) :])
    extractor = recipe.quality[0].extractor if recipe.quality else None
    course = Course(store, recipe.parser, fitted, settings_of(fitted, recipe.device), extractor, len(config.order))
    for event in events[len(rows) :]:
        course.happen(event)
        row = course.measure(event)
        check_heldout(row, rows)
        rows.append(row)
        note_sources(store.runs / CONTINUAL_RUN, event.present)
        if fitted.trainer.logger is not False:
            log_row(store.runs / CONTINUAL_RUN, rows)
        for output in (path, picture_of(path)):
            note_output(store.runs, output, event.present)
        matrix(rows).savefig(picture_of(path))
        write_record(path, experiment, rows, len(events))
    return write_record(path, experiment, rows, len(events))


@dataclass(frozen=True)
class Course:
    """What an experiment needs to go through its events.

    Attributes:
        store: where sources arrive and leave.
        parser: of `fit`.
        config: of `fit`.
        settings: how samples are made that are measured.
        extractor: what measures them, if anything does.
        sources: number of sources that arrive in all.
    """

    store: Store
    parser: Parser
    config: Namespace
    settings: Settings
    extractor: FeatureExtractor | None
    sources: int

    def happen(self, event: Event) -> None:
        """Let an event happen: `fit` of the source that arrives, or `forget` of those that leave."""
        if event.arrives is not None:
            config = self.config.clone()
            config.data.sources = [event.arrives]
            fit(ConfiguredRecipe(self.parser, config), self.store.path)
        for source in event.leave:
            where = ["--store", str(self.store.path), "--source", source, "--root", str(self.config.data.root)]
            log.info(receipt(forget(forget_parser().parse_args(where))))

    def measure(self, event: Event) -> dict[str, Any]:
        """Return the row of an event; see `cdm_lightning.continual.measured`."""
        root, exclude = Path(self.config.data.root), self.config.data.exclude
        present = sorted(event.present)
        held_out = heldout_images(self.store, present, root, exclude)
        credited = images_credited(self.sources)
        return measured(event, self.store, held_out, self.settings, self.extractor, credited)


def fit_config(config: Namespace) -> Namespace:
    """Return what `fit` is told of a command line of `continual`.

    Raises:
        BadInput: it names sources too.
    """
    if config.data.sources != "all":
        raise BadInput(f"data.sources is {config.data.sources}: leave it out, --order says which sources arrive")
    fitted = config.clone()
    for name in OWN_OPTIONS:
        fitted.pop(name)
    fitted.refit = False
    return fitted


def settings_of(config: Namespace, device: str) -> Settings:
    """Return how samples are made: as the validation of a fit with this configuration makes them."""
    return Settings(
        n=config.metrics.n,
        seed=config.seed,
        strategy=config.model.strategy,
        sampler=config.sampler.name,
        steps=config.sampler.steps,
        device=device,
    )


def described(config: Namespace, recipe: ConfiguredRecipe, fitted: Namespace) -> dict[str, Any]:
    """Return all that repeats an experiment, as JSON."""
    settings = settings_of(fitted, recipe.device)
    whole = fitted.clone()
    for name in ("store", "config"):
        whole.pop(name, None)
    plain = yaml.safe_load(recipe.parser.dump(whole))
    return {
        "store": str(config.store),
        "order": list(config.order),
        "forget_at": list(config.forget_at),
        "configuration": json.loads(json.dumps(plain), parse_constant=str),
        "root": str(fitted.data.root),
        "exclude": fitted.data.exclude,
        "split": HELDOUT,
        "extractor": fitted.metrics.extractor,
        "extractor_fingerprint": recipe.quality[0].extractor.fingerprint if recipe.quality else None,
        **{name: getattr(settings, name) for name in ("n", "sampler", "steps", "strategy", "seed", "device")},
        "heldout_error_sigma": COMPOSED_SIGMA,
        "heldout_error_images": COMPOSED_IMAGES,
        "accuracy_images": images_credited(len(config.order)),
        **environment(),
    }


def check_images(recipe: ConfiguredRecipe, events: Sequence[Event]) -> None:
    """Check the shards of every source that is there in these events, and write them if there are none.

    Raises:
        BadInput: a source is not there, or cannot be used.
    """
    recipe.config.data.sources = sorted({source for event in events for source in event.present})
    data = recipe.data()
    data.prepare()
    sources = data.chosen_sources()
    check_data(data, sources, needs_public=False, private=frozenset(filter(recipe.privacy.covers, sources)))
    held_out = {source for source in sources if data.used(source, HELDOUT)}
    for event in events:
        if event.present and held_out.isdisjoint(event.present):
            raise BadInput(
                f"none of {', '.join(sorted(event.present))} has a held-out image, so nothing could be measured: "
                "begin with another source in --order, or hold out more (data.heldout_fraction)"
            )


def check_place(path: Path, store: Store) -> None:
    """Raise BadInput if the record would lie in the store, where forgetting a source may leave nothing of it."""
    if path.resolve().is_relative_to(store.path.resolve()):
        raise BadInput(f"--json {path} lies in the store: name a file elsewhere, it keeps numbers of who has left")
    if picture_of(path) == path:
        raise BadInput(f"--json {path} is where the picture of the record goes: give it another suffix than .png")


def picture_of(path: Path) -> Path:
    """Return where the picture of the matrix lies: beside the record."""
    return path.with_suffix(".png")
