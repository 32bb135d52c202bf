"""The joint classifier of Golatkar et al. (2023, arXiv 2308.01937): one for all sources. A baseline, and not exact.

It has seen the images of every source at once. So it breaks the invariant that a compartment depends on its source
alone: it has to be trained again when a source comes or goes, and is never part of a store. Its weights are those of a
classifier, not of densities that belong to the denoisers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser, mixture_weights
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import BackboneFeatures, Featured, NoisedFeatures, Whitening
from cdm_lightning.evidence.ratio import OWN_SHARE, STEPS, hat
from cdm_lightning.tensor_files import read_tensors

NAMES = ("knots", "weight", "bias", "mean", "deviation", "basis")  # of the tensors in its file


@dataclass(frozen=True)
class JointHead:
    """log p_i(x; sigma) - log sum_j p_j(x; sigma), up to a constant common to all sources: linear in features.

    Attributes:
        knots: [level], rising noise levels.
        weight: [level, source, feature].
        bias: [level, source].
    """

    knots: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, by_source: Sequence[NoisedFeatures], knots: Tensor, ridge: float) -> Self:
        """Fit by multinomial logistic regression (LBFGS from zero: a convex loss, no draw), all sources weighing alike.

        A classifier of sources that occur with shares q_i tends to log q_i + log p_i - log sum_j q_j p_j. Here every
        q_i is 1 / N, however many images a source has, so the logits are log densities as they are, and lambda_i is
        for the composed model to add. Weights of a level: see `RatioHead.fit`.

        Args:
            by_source: features of each source's noised images.
            knots: [level], rising.
            ridge: times the square of the weights is added to the loss, which is in nats per image.
        """
        value = torch.cat([own.value for own in by_source])
        levels = hat(torch.cat([own.sigma for own in by_source]), knots)
        count = torch.tensor([len(own.sigma) for own in by_source], device=value.device)
        true = torch.arange(len(count), device=value.device).repeat_interleave(count)
        mass = (1 / (len(count) * count.to(value)))[true]
        shapes = (len(count), value.shape[1]), (len(knots), len(count), value.shape[1]), (len(knots), len(count))
        shared, departure, bias = (value.new_zeros(shape, requires_grad=True) for shape in shapes)
        optimizer = torch.optim.LBFGS([shared, departure, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = _logits(value, levels, shared + departure, bias)
            penalty = ridge * (shared.square().sum() + OWN_SHARE * departure.square().sum())
            total: Tensor = (mass * cross_entropy(logits, true, reduction="none")).sum() + penalty
            total.backward()
            return total

        optimizer.step(loss)
        return cls(knots, (shared + departure).detach(), bias.detach())

    def logits(self, noised: NoisedFeatures) -> Tensor:
        """Return the logits [n, source]."""
        levels = hat(noised.sigma, self.knots)
        return _logits(noised.value, levels, self.weight.to(levels), self.bias.to(levels))


def _logits(value: Tensor, levels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return sum_l levels_l (weight_l value + bias_l): [n, source], for value [n, feature] and levels [n, level]."""
    by_level = (value @ weight.flatten(0, 1).T).unflatten(1, bias.shape) + bias
    return torch.einsum("nl,nls->ns", levels, by_level)


class JointClassifier:
    """The classifier in a file, with the frozen backbone that it looks through.

    The file is read when the first image is weighed: so a model can be opened, and refused, before it is trained.

    Args:
        path: see `keep_classifier`.
        compartments: of the sources; give the backbone and what was fitted on `public`, no prompt.

    Raises:
        BadInput: a single source, or a backbone that gives no features.
    """

    def __init__(self, path: Path, compartments: Compartments) -> None:
        if len(compartments) < 2:
            raise BadInput(
                f"the row 'classifier' tells sources from each other, but '{next(iter(compartments))}' is the only "
                "one: choose more --sources, or leave out the row"
            )
        self.path, self._bare, self._device = path, bare_features(compartments), device_of(compartments)

    @cached_property
    def _parts(self) -> tuple[BackboneFeatures, JointHead]:
        tensors, _ = read_tensors(self.path)
        knots, weight, bias, *rest = (tensors[name].to(self._device) for name in NAMES)
        return replace(self._bare, whitening=Whitening(knots, *rest)), JointHead(knots, weight, bias)

    def log_densities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_i(x; sigma) [source, batch], up to a constant common to all, by one pass of the features."""
        features, head = self._parts
        return head.logits(features(x, sigma)).T


@dataclass(frozen=True)
class ClassifierEvidence:
    """The classifier's log density of one source, an `Evidence`; `source` is its index."""

    classifier: JointClassifier
    source: int

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log p_i(x; sigma) [batch], up to a constant common to all sources.

        Raises:
            BadInput: a label is given, which this classifier cannot tell from another.
        """
        _refuse_label(label)
        return self.classifier.log_densities(x, sigma)[self.source]


class ClassifiedDenoiser(ComposedDenoiser):
    """sum_i w_i D_i, `posterior`, with w_i = softmax_i(log lambda_i + log p_i) of the classifier at every level.

    The classifier is asked once for all sources. D_i are those of the compartments: closed forms above the switch.
    """

    def __init__(self, compartments: Compartments, classifier: JointClassifier) -> None:
        evidence = {source: ClassifierEvidence(classifier, k) for k, source in enumerate(compartments)}
        super().__init__(compartments, evidence, compartments.prior(), "posterior", compartments.sigma_switch)
        self.classifier = classifier

    def weights(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return w_i(x; sigma) [source, batch]; see `ClassifierEvidence.log_density`."""
        _refuse_label(label)
        log_densities = self.classifier.log_densities(x, sigma)
        return mixture_weights(log_densities, self.prior.log().to(log_densities))


def _refuse_label(label: Tensor | None) -> None:
    if label is not None:
        raise BadInput("the joint classifier is class-blind, so it cannot weigh sources under a label")


def bare_features(compartments: Compartments) -> BackboneFeatures:
    """Return the features of the frozen backbone without a prompt.

    Raises:
        BadInput: it gives none.
    """
    backbone = compartments.backbone
    if not isinstance(backbone, Featured):
        raise BadInput(
            f"the row 'classifier' looks at the backbone's features, but a {type(backbone).__name__} has no method "
            "`features`: leave out the row"
        )
    guide = compartments.public.closed_form.to(device_of(compartments)) if compartments.guided else None
    return BackboneFeatures(backbone, guide, compartments.preconditioning)


def device_of(compartments: Compartments) -> torch.device:
    """Return where the backbone is."""
    return next(compartments.backbone.parameters()).device
