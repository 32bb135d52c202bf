"""Contenders: the models that `evaluate` samples from, by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser, Strategy
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.fit_record import fit_record
from cdm_lightning.generation import finite_or_text
from cdm_lightning.joint_classifier import ClassifiedDenoiser, JointClassifier
from cdm_lightning.packing import open_compartments
from cdm_lightning.soup import Soup
from cdm_lightning.store import COMPARTMENT, Store
from cdm_lightning.tensor_files import Json, file_sha256

CLOSED_FORM: Literal["closed_form"] = "closed_form"
PUBLIC: Literal["public"] = "public"
CLASSIFIER: Literal["classifier"] = "classifier"
SOUP: Literal["soup"] = "soup"
Parts = Strategy | Literal["closed_form", "public", "classifier", "soup"]
SWITCH_OFF = "@inf"
STRATEGIES: tuple[Strategy, ...] = ("uniform", "posterior", "routed", "assign", "draft")  # as rows of a table
ROWS: tuple[Parts, ...] = (CLOSED_FORM, PUBLIC, *get_args(Strategy), CLASSIFIER, SOUP)
OTHER_COMPARTMENTS = (PUBLIC, SOUP)  # parts that are not made of the compartments as they are


@dataclass(frozen=True)
class Contender:
    """A model to sample from: which store, whose compartments, and how they are composed.

    Attributes:
        name: of its row.
        store: the folder.
        sources: whose compartments take part.
        parts: `closed_form`: the closed forms of the sources, mixed by their posterior at every level, no network.
            `public`: the backbone alone, with the closed form of `public`. `classifier`: `posterior`, with the weights
            of a classifier that has seen all sources at once; not exact. `soup`: one network of averaged prompts; not
            exact. Otherwise a strategy of the composed model.
        sigma_switch: above it every denoiser is a closed form: at all levels if it is 0; None is the store's own, inf
            turns that off.
        classifier: the file of `classifier`; it has to be there when the first image is sampled.
    """

    name: str
    store: Path
    sources: tuple[str, ...]
    parts: Parts
    sigma_switch: float | None = None
    classifier: Path | None = None

    def open(self, device: str) -> "Opened":
        """Return the model, on a device.

        Raises:
            BadInput: the store or a source cannot be used, or not in this way.
        """
        return self.of(self.compartments(device))

    def compartments(self, device: str) -> Compartments:
        """Return the compartments that take part, on a device; see `open`."""
        store = Store.open(self.store)
        if self.parts == PUBLIC:
            one = open_compartments(store, self.sources[:1], sigma_switch=None, device=device)
            return backbone_alone(one, self.sigma_switch, device)
        opened = open_compartments(store, self.sources, sigma_switch=self.sigma_switch, device=device)
        return Soup.of(opened) if self.parts == SOUP else opened

    def of(self, compartments: Compartments) -> "Opened":
        """Return the model that these compartments make.

        Raises:
            BadInput: they cannot make it.
        """
        if self.parts == CLASSIFIER:
            if self.classifier is None:
                raise ValueError("the row 'classifier' needs the file of its classifier")
            return Opened(
                compartments, ClassifiedDenoiser(compartments, JointClassifier(self.classifier, compartments))
            )
        if self.parts == SOUP:
            return Opened(compartments, compartments.composed("draft"))
        strategy = "posterior" if self.parts in (CLOSED_FORM, PUBLIC) else self.parts
        return Opened(compartments, compartments.composed(strategy))

    def same_compartments(self, other: "Contender") -> bool:
        """Return whether both are made of the same compartments, so that these are opened once."""
        mine, others = (
            (one.store, one.sources, one.parts if one.parts in OTHER_COMPARTMENTS else None, one.sigma_switch)
            for one in (self, other)
        )
        return mine == others

    def identity(self) -> dict[str, Json]:
        """Return all of this contender that its samples depend on: hashes, no path and no name."""
        store = Store.open(self.store)
        sources = () if self.parts == PUBLIC else self.sources
        trained = {} if self.classifier is None else {"classifier_sha256": file_sha256(self.classifier)}
        return trained | {
            "parts": self.parts,
            "sigma_switch": None if self.sigma_switch is None else finite_or_text(self.sigma_switch),
            "backbone_sha256": store.info.backbone_sha256,
            "compartments_sha256": {source: file_sha256(store.folder(source) / COMPARTMENT) for source in sources},
        }


@dataclass(frozen=True)
class Opened:
    """A contender that was opened: what it samples with, and the compartments that count its network evaluations."""

    compartments: Compartments
    composed: ComposedDenoiser


def backbone_alone(opened: Compartments, sigma_switch: float | None, device: str) -> Compartments:
    """Return the backbone without any source: `public` takes their place, with its closed form and no prompt.

    Args:
        opened: compartments of the store.
        sigma_switch: None is that of `opened`.
        device: where the backbone is.
    """
    public = opened.public
    largest = int(public.error.size.max())  # of the pseudo-sources: the draft's error is theirs
    own = Compartment(largest, public.closed_form).to(device)
    switch = opened.sigma_switch if sigma_switch is None else sigma_switch
    return Compartments(opened.backbone, {PUBLIC: own}, public, opened.guided, switch, opened.preconditioning)


def contender(store: Store, sources: Sequence[str], name: str, classifier: Path | None = None) -> Contender:
    """Return the contender of a store by the name of its row, one of `ROWS`, with `@inf` after it or not.

    `classifier` is the file of the row `classifier`, which no other row needs.

    Raises:
        BadInput: there is no such row.
    """
    known: dict[str, Parts] = {part: part for part in ROWS}
    parts = known.get(name.removesuffix(SWITCH_OFF))
    if parts is None:
        rows = ", ".join(ROWS)
        raise BadInput(f"unknown row '{name}': expected one of {rows}, with @inf or not{did_you_mean(name, ROWS)}")
    switch = float("inf") if name.endswith(SWITCH_OFF) else None
    if parts == CLOSED_FORM:
        if switch is not None:
            raise BadInput("closed_form@inf is no row: without a closed-form start, nothing of closed_form is left")
        switch = 0.0
    own = classifier if parts == CLASSIFIER else None
    return Contender(name, store.path, tuple(sources), parts, switch, own)


def default_names(store: Store, sources: Sequence[str], device: str) -> list[str]:
    """Return the names of all rows that a store allows, without `@inf`.

    Raises:
        BadInput: the store or a source cannot be used.
    """
    can_finish = open_compartments(store, sources, sigma_switch=None, device=device).can_finish
    return [CLOSED_FORM, PUBLIC, *(name for name in STRATEGIES if name != "draft" or can_finish)]


def opponent(text: str) -> Contender:
    """Return the contender that `LABEL=STORE` names: all sources of another store, composed as its fit has recorded.

    `LABEL@inf=STORE` turns its closed-form start off.

    Raises:
        BadInput: it is not of this form, or there is no such store.
    """
    name, _, place = text.partition("=")
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{0,19}}({SWITCH_OFF})?", name) or not place:
        raise BadInput(f"--against '{text}' is not LABEL=STORE: expected a short name, =, and the folder of a store")
    store = Store.open(Path(place))
    switch = float("inf") if name.endswith(SWITCH_OFF) else None
    return Contender(name, store.path, tuple(store.choose("all")), fit_record(store).strategy or "routed", switch)


def opened_models(
    store: Store,
    sources: Sequence[str],
    names: Sequence[str],
    opponents: Sequence[str],
    device: str,
    classifier: Path | None = None,
) -> dict[str, tuple[Contender, Opened]]:
    """Return contenders by the name of their row, opened, so that what cannot be sampled is told at once.

    Args:
        store: whose images all rows shall be like.
        sources: of it.
        names: see `contender`; none are all that the store allows.
        opponents: see `opponent`.
        device: where the models are.
        classifier: see `contender`.

    Raises:
        BadInput: a row or a store is unknown, cannot be sampled in this way, or is named twice.
    """
    own = [contender(store, sources, name, classifier) for name in names or default_names(store, sources, device)]
    models: dict[str, tuple[Contender, Opened]] = {}
    for one in own + [opponent(text) for text in opponents]:
        if one.name in models:
            raise BadInput(f"row '{one.name}' is named twice: name every row once, and opponents unlike other rows")
        shape, expected = Store.open(one.store).info.image_shape, store.info.image_shape
        if shape != expected:
            raise BadInput(f"{one.store} makes images of shape {shape}, but those of {store.path} are {expected}")
        alike = [opened.compartments for other, opened in models.values() if one.same_compartments(other)]
        models[one.name] = one, one.of(alike[0] if alike else one.compartments(device))
    return models
