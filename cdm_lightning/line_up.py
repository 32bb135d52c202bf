"""The line-up of `evaluate`: the contenders that a command line names, opened and checked before any is sampled."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cdm_lightning.contenders import CLASSIFIER, CLOSED_FORM, PUBLIC, SOUP, Contender, Opened, Parts
from cdm_lightning.denoiser import SIGMA_MIN
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.fit_record import fit_record
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import RUNS, Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.stratification import class_counts

LABEL, SWITCH = "[A-Za-z][A-Za-z0-9_-]{0,19}", "inf|[0-9]+(?:[.][0-9]+)?"
STRATEGIES: tuple[Strategy, ...] = ("uniform", "posterior", "routed", "assign", "draft")  # as rows of a table
ROWS: tuple[Parts, ...] = (CLOSED_FORM, PUBLIC, *get_args(Strategy), CLASSIFIER, SOUP)


def contender(store: Store, sources: Sequence[str], name: str, classifier: Path | None = None) -> Contender:
    """Return the contender of a store by the name of its row, one of `ROWS`, with @SIGMA after it or not.

    `classifier` is the file of the row `classifier`, which no other row needs.

    Raises:
        BadInput: there is no such row.
    """
    known: dict[str, Parts] = {part: part for part in ROWS}
    row, switch = with_switch(name)
    parts = known.get(row)
    if parts is None:
        rows = ", ".join(known)
        raise BadInput(f"unknown row '{name}': expected one of {rows}, with @SIGMA or not{did_you_mean(row, known)}")
    if parts == CLOSED_FORM:
        if switch is not None:
            raise BadInput(f"{name} is no row: closed_form is a closed form at every noise level, so it has no switch")
        switch = 0.0
    own = classifier if parts == CLASSIFIER else None
    return Contender(name, store.path, tuple(sources), parts, switch, classifier=own)


def with_switch(name: str) -> tuple[str, float | None]:
    """Split NAME@SIGMA, the name of a row with the level above which every denoiser shall be a closed form.

    Without @SIGMA there is no level given: None. `inf` turns the closed-form start off.

    Raises:
        BadInput: what follows the @ is no noise level.
    """
    row, at, level = name.partition("@")
    if not at:
        return row, None
    if not (re.fullmatch(SWITCH, level) and float(level) > SIGMA_MIN):
        raise BadInput(f"row '{name}': expected a noise level above {SIGMA_MIN} after the @, or inf")
    return row, float(level)


def default_names(store: Store, sources: Sequence[str], device: str) -> list[str]:
    """Return the names of all rows that a store allows, without `@SIGMA`.

    Raises:
        BadInput: the store or a source cannot be used.
    """
    obstacle = open_compartments(store, sources, sigma_switch=None, device=device).obstacle
    return [CLOSED_FORM, PUBLIC, *(name for name in STRATEGIES if name != "draft" or obstacle is None)]


def opponent(text: str) -> Contender:
    """Return the contender that `LABEL=STORE` names: all sources of another store, composed as its fit has recorded.

    `LABEL@SIGMA=STORE` has its closed forms above another level; `LABEL@inf=STORE` nowhere.

    Raises:
        BadInput: it is not of this form, or there is no such store.
    """
    name, _, place = text.partition("=")
    if not re.fullmatch(f"{LABEL}(@.*)?", name) or not place:
        raise BadInput(f"--against '{text}' is not LABEL=STORE: expected a short name, =, and the folder of a store")
    switch = with_switch(name)[1]
    store = Store.open(Path(place))
    return Contender(name, store.path, tuple(store.choose("all")), fit_record(store).strategy or "routed", switch)


def note_outputs(out: Path, models: Mapping[str, tuple[Contender, Opened]]) -> None:
    """Note in the store of each model that a folder is made of its sources, and make the folder."""
    for contender, _ in models.values():
        note_output(contender.store / RUNS, out, contender.sources)
    out.mkdir(parents=True, exist_ok=True)


def under_classes(one: Contender, counts: Mapping[str, int]) -> Contender:
    """Return a contender whose images have these classes; `public` knows no class, and stays as it is.

    Raises:
        BadInput: its store was fitted without class labels, no source of it has one of the classes, or the row knows
            none.
    """
    if one.parts == PUBLIC or not counts:
        return one
    if one.parts == CLASSIFIER:
        raise BadInput(f"the row '{one.name}' knows no classes: leave it or --by_class out")
    known = class_counts(Store.open(one.store), one.sources)
    missing = [label for label in counts if label not in known]
    if missing:
        raise BadInput(
            f"--by_class samples images of the class '{missing[0]}', but no source of {one.store} has it: leave "
            f"'{one.name}' out, or fit it on images of this class too"
        )
    return replace(one, class_counts=counts)


def opened_models(
    store: Store,
    sources: Sequence[str],
    names: Sequence[str],
    opponents: Sequence[str],
    device: str,
    by_class: bool,
    classifier: Path | None = None,
) -> dict[str, tuple[Contender, Opened]]:
    """Return contenders by the name of their row, opened, so that what cannot be sampled is told at once.

    Args:
        store: whose images all rows shall be like.
        sources: of it.
        names: see `contender`; none are all that the store allows.
        opponents: see `opponent`.
        device: where the models are.
        by_class: whether images have the classes of the sources' training images, in their proportions.
        classifier: see `contender`.

    Raises:
        BadInput: a row or a store is unknown, cannot be sampled in this way, or is named twice.
    """
    counts = class_counts(store, sources) if by_class else {}
    own = [contender(store, sources, name, classifier) for name in names or default_names(store, sources, device)]
    models: dict[str, tuple[Contender, Opened]] = {}
    for one in own + [opponent(text) for text in opponents]:
        if one.name in models:
            raise BadInput(f"row '{one.name}' is named twice: name every row once, and opponents unlike other rows")
        shape, expected = Store.open(one.store).info.image_shape, store.info.image_shape
        if shape != expected:
            raise BadInput(f"{one.store} makes images of shape {shape}, but those of {store.path} are {expected}")
        one = under_classes(one, counts)
        alike = [opened.compartments for other, opened in models.values() if one.same_compartments(other)]
        models[one.name] = one, one.of(alike[0] if alike else one.compartments(device))
    return models
