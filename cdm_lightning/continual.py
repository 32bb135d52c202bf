"""What is measured after every event of a continual experiment, and the record of it, which an interruption keeps.

The record lies outside the store: it holds numbers of sources that have left since.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cdm_lightning import ledger
from cdm_lightning.attribution import heldout_credits
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.evaluation import composed_errors
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import composed_fidelity
from cdm_lightning.generation import Settings
from cdm_lightning.images import spread
from cdm_lightning.packing import open_compartments
from cdm_lightning.reference import images_sha256, references_of
from cdm_lightning.store import LEDGER, Store
from cdm_lightning.tensor_files import read_object, write_report
from cdm_lightning.timeline import Event
from cdm_lightning.transfer import backward_transfer_by_source, forgetting_by_source, mean

LESS_IS_BETTER = {"heldout_error": True, "own_error": True, "accuracy": False}  # what a row holds by source
ANEW = "begin anew, with another --store and another --json"
Row = dict[str, Any]


def measured(
    event: Event,
    store: Store,
    held_out: Mapping[str, Tensor],
    settings: Settings,
    extractor: FeatureExtractor | None,
    credited: int,
) -> Row:
    """Return the row of an event: what `validate` measures of the composed model of the sources that are there.

    `heldout_error` is of the composed model, `own_error` of each true source's D_s alone on the same images and noise;
    their difference is what the composition costs. `accuracy` is the share of the source's images that are credited to
    it.

    Args:
        event: says which sources.
        store: holds them.
        held_out: uint8 [n, channel, height, width] by source.
        settings: strategy, number, noise and sampler of the samples.
        extractor: makes the features that are compared; None samples nothing.
        credited: images per source for the accuracy, the same after every event.
    """
    compartments = open_compartments(store, sorted(event.present), sigma_switch=None, device=settings.device)
    composed = compartments.composed(settings.strategy)
    images = {source: held_out[source].to(settings.device) for source in composed.sources if len(held_out[source])}
    few = {source: spread(some, credited) for source, some in images.items()}
    credits = heldout_credits(composed, compartments.public.calibration.floor, few)
    scores = None
    if extractor is not None:
        references = references_of(store.runs / "sources", images, extractor)
        scores = composed_fidelity(composed, references, extractor, compartments.public.closed_form.shape, settings)
    own = [composed_errors(composed.alone(source), images) for source in composed.sources]
    by_source = [] if credits is None else credits.credits.accuracy_by_source
    hashes = store.compartments_sha256()
    return {
        "event": event.name,
        "task": event.task,
        "leave": list(event.leave),
        "sources": composed.sources,
        "heldout_error": composed_errors(composed, images),
        "own_error": {source: error for alone in own for source, error in alone.items()},
        "accuracy": dict(zip(composed.sources, by_source, strict=False)),
        "scores": scores,
        "compartments_sha256": {source: hashes[source] for source in composed.sources},
        "heldout_sha256": {source: images_sha256(held_out[source]) for source in composed.sources},
        "reference_images": {source: len(held_out[source]) for source in composed.sources},
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return average forgetting and backward transfer at the last row, and whether no compartment ever changed."""
    known: dict[str, set[str]] = {}
    for row in rows:
        for source, sha256 in row["compartments_sha256"].items():
            known.setdefault(source, set()).add(sha256)
    found: dict[str, Any] = {"compartments_constant": {source: len(hashes) == 1 for source, hashes in known.items()}}
    for name, less_is_better in LESS_IS_BETTER.items():
        matrix = [row[name] for row in rows]
        forgotten = forgetting_by_source(matrix, less_is_better)
        found[name] = {
            "average_forgetting": mean(forgotten),
            "backward_transfer": mean(backward_transfer_by_source(matrix, less_is_better)),
            "forgetting_by_source": forgotten,
        }
    return found


def read_rows(path: Path, experiment: Mapping[str, Any]) -> list[Row]:
    """Return the rows that a record holds, none if there is no record.

    Raises:
        BadInput: the file is no record of this experiment.
    """
    if not path.exists():
        return []
    try:
        record = read_object(path)
    except StoreError as error:
        raise BadInput(f"--json {path} is there and no record of an experiment: name another file") from error
    for name, value in experiment.items():
        if record.get(name) != value:
            was = _difference(record.get(name), value, name)
            raise BadInput(f"--json {path} holds another experiment, {was}: run the same command again, or {ANEW}")
    return list(record["rows"])


def _difference(was: Any, now: Any, name: str) -> str:
    """Return where two values of a record differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(key for key in sorted({*was, *now}) if was.get(key) != now.get(key))
        return _difference(was.get(key), now.get(key), f"{name}.{key}")
    return f"whose {name} is {json.dumps(was)[:60]}, and not {json.dumps(now)[:60]}"


def write_record(path: Path, experiment: Mapping[str, Any], rows: Sequence[Row], events: int) -> dict[str, Any]:
    """Write the record of what was measured so far, as a whole or not, and return it; `events` are expected."""
    record = {**experiment, "complete": len(rows) == events, "rows": list(rows), "summary": summary(rows)}
    write_report(path, record)
    return record


def check_store(store: Store, rows: Sequence[Row], events: Sequence[Event]) -> None:
    """Check that a store is as an experiment left it after these rows, or in the midst of its next event.

    Raises:
        BadInput: it holds other sources or lacks some, or a compartment is not the one that a row was measured on.
    """
    before = set(events[len(rows) - 1].present) if rows else set()
    after = set(events[len(rows)].present) if len(rows) < len(events) else before
    there = set(store.sources())
    if other := sorted(there - before - after):
        raise BadInput(
            f"the store {store.path} holds {', '.join(other)}, which this experiment has not brought in: it begins "
            f"with a store without compartments; {ANEW}"
        )
    if missing := sorted((before & after) - there):
        raise BadInput(f"the store {store.path} lacks {', '.join(missing)}, which the experiment brought in: {ANEW}")
    hashes = store.compartments_sha256()
    for number, row in enumerate(rows, start=1):
        for source, sha256 in row["compartments_sha256"].items():
            if sha256 != hashes.get(source, _last_sha256(store, source)):
                raise BadInput(
                    f"row {number} was measured on another compartment of '{source}' than the store {store.path} "
                    f"holds or has forgotten: {ANEW}"
                )


def _last_sha256(store: Store, source: str) -> str | None:
    """Return the hash of the compartment that a source had when it was forgotten, as the ledger says."""
    newest = ledger.last(store.path / LEDGER, source)
    return newest.before if newest is not None and newest.event == "forgotten" else None


def check_heldout(row: Row, rows: Sequence[Row]) -> None:
    """Raise BadInput if a new row was measured on other held-out images of a source than the rows before it."""
    for number, earlier in enumerate(rows, start=1):
        for source, sha256 in row["heldout_sha256"].items():
            if earlier["heldout_sha256"].get(source, sha256) != sha256:
                raise BadInput(
                    f"the held-out images of '{source}' are not those that row {number} was measured on: put the "
                    f"shards back, or {ANEW}"
                )
