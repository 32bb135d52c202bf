"""The compartment of one source: its closed form, its classes' closed forms, and what was trained on top."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from cdm_lightning.gaussians import Gaussians
from cdm_lightning.prompts import NO_LABEL, Prompt


@dataclass(frozen=True)
class ClassForm:
    """What is known of one class of a source: its number of distinct training images, and their Gaussians.

    Attributes:
        n: distinct training images.
        closed_form: their Gaussians.
        fine: those of small clusters, that `closed_form` was merged from; see `Compartment`.
    """

    n: int
    closed_form: Gaussians
    fine: Gaussians

    def to(self, device: torch.device | str) -> "ClassForm":
        """Return the same on another device."""
        return ClassForm(self.n, self.closed_form.to(device), self.fine.to(device))


@dataclass(frozen=True)
class Compartment:
    """All that exists because of one source.

    Attributes:
        n: distinct training images.
        closed_form: their Gaussians: `fine` merged, and shrunk towards `public`; computed when a store is opened.
        fine: the maximum-likelihood Gaussians of small clusters of them: statistics of these images alone, which add up
            to the closed form of several sources together. This is what is stored. Of a private source both are what it
            has released, which is shrunk already.
        prompt: what was trained, if anything was.
        classes: by class label, if it was fitted with class labels.
        label: the label that the prompt is asked for; `under` sets it.
        public_mix: the share of `public` in what the prompt was trained on, 0 without a prompt.
    """

    n: int
    closed_form: Gaussians
    fine: Gaussians
    prompt: Prompt | None = None
    classes: Mapping[str, ClassForm] = field(default_factory=dict)
    label: int = NO_LABEL
    public_mix: float = 0.0

    def to(self, device: torch.device | str) -> "Compartment":
        """Return the same compartment on another device."""
        prompt = None if self.prompt is None else self.prompt.to(device)
        classes = {name: form.to(device) for name, form in self.classes.items()}
        closed_form, fine = self.closed_form.to(device), self.fine.to(device)
        return replace(self, closed_form=closed_form, fine=fine, prompt=prompt, classes=classes)

    def target(self, public: Gaussians) -> Gaussians:
        """Return the closed form of what this compartment stands for: (1 - m) p_i + m p_public, m = `public_mix`."""
        return self.closed_form.mixed_with(public, self.public_mix) if self.public_mix else self.closed_form

    def under(self, label: str) -> "Compartment":
        """Return what this compartment knows of one of its classes, as a compartment."""
        form = self.classes[label]
        number = label_number(self.classes, label)
        return replace(self, n=form.n, closed_form=form.closed_form, fine=form.fine, label=number)


def label_number(classes: Iterable[str], label: str) -> int:
    """Return the index of a class into a prompt's `labels`."""
    return NO_LABEL + 1 + sorted(classes).index(label)
