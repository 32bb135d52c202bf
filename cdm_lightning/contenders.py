"""Contenders: the models that `evaluate` samples from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.generation import batched, finite_or_text
from cdm_lightning.joint_classifier import ClassifiedDenoiser, JointClassifier
from cdm_lightning.packing import open_compartments
from cdm_lightning.soup import Soup
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.stratification import strata
from cdm_lightning.tensor_files import Json, file_sha256

CLOSED_FORM: Literal["closed_form"] = "closed_form"
PUBLIC: Literal["public"] = "public"
CLASSIFIER: Literal["classifier"] = "classifier"
SOUP: Literal["soup"] = "soup"
Parts = Strategy | Literal["closed_form", "public", "classifier", "soup"]
STRATEGIES: Mapping[str, Strategy] = {
    **{name: name for name in get_args(Strategy)},
    CLOSED_FORM: "posterior",
    PUBLIC: "posterior",
    SOUP: "draft",
}
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
        class_counts: training images by class; then image k is sampled under the class that `stratification.spread`
            gives it. Empty: images have no class, as those of `public` never have.
        classifier: the file of `classifier`; it has to be there when the first image is sampled.
    """

    name: str
    store: Path
    sources: tuple[str, ...]
    parts: Parts
    sigma_switch: float | None = None
    class_counts: Mapping[str, int] = field(default_factory=dict)
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
            BadInput: they cannot make it, or no source has one of the classes.
        """
        if self.parts == CLASSIFIER:
            if self.classifier is None:
                raise ValueError("the row 'classifier' needs the file of its classifier")
            classifier = JointClassifier(self.classifier, compartments)
            return Opened(compartments, ClassifiedDenoiser(compartments, classifier))
        strategy = STRATEGIES[self.parts]
        under = {label: compartments.under(label) for label in self.class_counts}
        by_class = {label: Opened(own, own.composed(strategy)) for label, own in under.items()}
        return Opened(compartments, compartments.composed(strategy), self.class_counts, by_class)

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
            "class_counts": dict(self.class_counts),
            "backbone_sha256": store.info.backbone_sha256,
            "compartments_sha256": store.tensors_sha256(sources),
        }


@dataclass(frozen=True)
class Opened:
    """A contender that was opened.

    Attributes:
        compartments: of the sources; they count their network evaluations.
        composed: the model of all classes together.
        class_counts: see `Contender`.
        by_class: the model under each class; empty if images have no class.
    """

    compartments: Compartments
    composed: ComposedDenoiser
    class_counts: Mapping[str, int] = field(default_factory=dict)
    by_class: Mapping[str, "Opened"] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Return the network evaluations so far, counted per image, under classes and without."""
        return self.compartments.evaluations + sum(one.evaluations for one in self.by_class.values())

    def batches(self, n: int, most: int) -> Iterator[tuple[ComposedDenoiser, Sequence[int]]]:
        """Yield models, and which of the images 0..n-1 each samples together: of one class, `most` at most."""
        if not self.by_class:
            yield from ((self.composed, part) for part in batched(n, most))
            return
        for label, indices in strata(self.class_counts, n).items():
            for part in batched(len(indices), most):
                yield self.by_class[label].composed, indices[part.start : part.stop]

    def drawn(self, n: int, seed: int) -> list[str]:
        """Return the source that each of the images 0..n-1 follows from the start, for `assign`."""
        found: dict[int, str] = {}
        for composed, indices in self.batches(n, n):
            sources = composed.start(seed, indices).drawn
            assert sources is not None
            found |= {k: composed.sources[i] for k, i in zip(indices, sources.tolist(), strict=True)}
        return [found[k] for k in range(n)]


def backbone_alone(opened: Compartments, sigma_switch: float | None, device: str) -> Compartments:
    """Return the backbone without any source: `public` takes their place, with its closed form and no prompt.

    Args:
        opened: compartments of the store.
        sigma_switch: None is that of `opened`.
        device: where the backbone is.
    """
    public = opened.public
    largest = int(public.error.size.max())  # of the pseudo-sources: the draft's error is theirs
    own = Compartment(largest, public.closed_form, public.closed_form).to(device)
    switch = opened.sigma_switch if sigma_switch is None else sigma_switch
    return Compartments(opened.backbone, {PUBLIC: own}, public, opened.guided, switch, opened.preconditioning)
