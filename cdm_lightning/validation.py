"""Validation of the composed model of all finished sources, after each of them."""

import logging
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from cdm_lightning.backbone import Backbone
from cdm_lightning.compartment import Compartment
from cdm_lightning.errors import ShardError, StoreError, UnknownSource
from cdm_lightning.images import spread
from cdm_lightning.ledger import locked
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import unpack_backbone, unpack_compartment
from cdm_lightning.phase import Clock, Phase
from cdm_lightning.public import Public
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.reference import HELDOUT_IMAGES
from cdm_lightning.run_sources import composed_lock, note_sources
from cdm_lightning.store import CONFIG, UNFINISHED, Store
from cdm_lightning.training import ending_at_sigterm, signals

log = logging.getLogger(__name__)


def validate_composed(recipe: Recipe, store: Store, phase: Phase) -> None:
    """Validate the composed model of all finished sources on their held-out images, but for those of private ones.

    It waits while somebody else does so. Where nothing takes what it finds, only the configuration is kept, and which
    sources are in the model.
    """
    with locked(composed_lock(store.runs)):
        _validate(recipe, store, phase)
        (store.runs / "composed" / UNFINISHED).unlink()


def was_cut(store: Store) -> bool:
    """Return whether the newest validation of the composed model has not come to its end."""
    return (store.runs / "composed" / UNFINISHED).exists()


def _validate(recipe: Recipe, store: Store, phase: Phase) -> None:
    sources = store.sources()
    note_sources(store.runs / "composed", sources)
    for name in (CONFIG, UNFINISHED):
        recipe.save_config(phase, store.runs / "composed" / name)
    if not recipe.watched:
        return
    module, data = recipe.module(), recipe.data()
    backbone, public = unpack_backbone(*store.read_backbone())
    module.backbone.load_state_dict(backbone.state_dict())
    compartments = finished_compartments(store, sources, module.backbone, public)
    open_to_all = [source for source in compartments if store.read_card(source).epsilon is None]
    if compartments and not open_to_all:
        log.info("%s: every source is private, so nothing is measured on their held-out images", phase.title)
        return
    module.begin_composed(phase, public, compartments)
    for place in recipe.outside:
        note_output(store.runs, place, sources)
    batches = heldout_batches(data, [source for source in open_to_all if source in data.available_sources()])
    with Clock(phase).part("validation", f"validated with {len(compartments)} sources"):
        trainer = recipe.trainer(phase, store.runs / "composed", -1)
        with signals(), ending_at_sigterm():
            trainer.validate(module, dataloaders=DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]


def finished_compartments(
    store: Store, sources: Sequence[str], backbone: Backbone, public: Public
) -> dict[str, Compartment]:
    """Return the compartments of these sources of the store; one that is damaged, or gone since, is left out, and told.

    Others that came since are not looked at: the sources are those that were noted (see `note_sources`).
    """
    compartments = {}
    for source in sources:
        try:
            compartments[source] = unpack_compartment(*store.read_compartment(source), backbone, public)
        except (StoreError, UnknownSource) as error:
            log.warning("validation without source %s: %s", source, error)
    return compartments


def heldout_batches(data: SourceData, sources: list[str]) -> list[dict[str, Any]]:
    """Return one batch of held-out images per source; a source whose shards are damaged is left out, and told."""
    batches = []
    for source in sources:
        try:
            images = spread(data.images(source, "heldout")[1], HELDOUT_IMAGES)
        except ShardError as error:
            log.warning("validation without source %s: %s", source, error)
            continue
        batches.append({"source": source, "image": images})
    return batches
