"""From which sources samples seem to come: a classifier that is used for evaluation only, and corrected for its faults.

It knows features of images and nothing of the model, so that a model is not judged by its own credits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

PENALTY = 0.01  # C of scikit-learn: features are many and correlated
ITERATIONS = 2000


@dataclass(frozen=True)
class Proportions:
    """From which sources samples seem to come.

    Attributes:
        counts: number of samples by the source that the classifier names.
        corrected: the most likely proportions of the true sources, given the counts.
        distance: total variation distance of `corrected` from the prior: half the sum of the absolute differences.
        p_value: of the hypothesis that the prior is right, given the counts.
    """

    counts: dict[str, int]
    corrected: dict[str, float]
    distance: float
    p_value: float


@dataclass(frozen=True)
class SourceJudge:
    """A classifier of sources and what it is known to confuse.

    Attributes:
        sources: their names.
        classifier: logistic regression on features of training images, as many of every source.
        confusion: [true source, named source], the numbers of held-out images.
    """

    sources: list[str]
    classifier: Pipeline
    confusion: Tensor

    @classmethod
    def fit(cls, training: Mapping[str, Tensor], heldout: Mapping[str, Tensor]) -> "SourceJudge":
        """Fit the classifier to features [n, dimension] of training images, and count its faults on held-out ones.

        Args:
            training: features of at least one image, by source; at least two sources.
            heldout: features by source.
        """
        sources = list(training)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=ITERATIONS))
        label = torch.cat([torch.full((len(training[source]),), i) for i, source in enumerate(sources)])
        with threadpool_limits(1):
            classifier.fit(torch.cat(list(training.values())).double().numpy(), label.numpy())
        named = torch.cat([_named(classifier, heldout[source]) for source in sources])
        true = torch.cat([torch.full((len(heldout[source]),), i) for i, source in enumerate(sources)])
        return cls(sources, classifier, confusion_of(true, named, len(sources)))

    @property
    def accuracy(self) -> float:
        """Return the share of held-out images, averaged over sources, whose source is named rightly."""
        return float((self.confusion.diagonal() / self.confusion.sum(1)).mean())

    def named(self, features: Tensor) -> Tensor:
        """Return the index [n] of the source that the classifier names, for features [n, dimension]."""
        return _named(self.classifier, features)


def _named(classifier: Pipeline, features: Tensor) -> Tensor:
    with threadpool_limits(1):
        return torch.from_numpy(classifier.predict(features.double().numpy()))


def confusion_of(true: Tensor, named: Tensor, sources: int) -> Tensor:
    """Return how many images of each source got each name, [true source, named source], for indices [n] of both."""
    pairs = torch.bincount(true * sources + named, minlength=sources**2)
    return pairs.reshape(sources, sources).double()


def proportions(named: Tensor, confusion: Tensor, prior: Mapping[str, float]) -> Proportions:
    """Return the proportions of sources among samples, and whether the prior fits.

    Args:
        named: index [n] of the source that the judge names, in the order of `prior`.
        confusion: [true source, named source], how often it gave each name to images whose source is known.
        prior: lambda_i by source.
    """
    counts = torch.bincount(named, minlength=len(prior)).double()
    expected = torch.tensor(list(prior.values()), dtype=torch.float64)
    corrected = most_likely_proportions(counts, _rates(confusion))
    return Proportions(
        dict(zip(prior, map(int, counts.tolist()), strict=True)),
        dict(zip(prior, corrected.tolist(), strict=True)),
        float((corrected - expected).abs().sum() / 2),
        p_value(counts, confusion, expected),
    )


def _rates(confusion: Tensor) -> Tensor:
    """Return the probability [true, named] of every name, with one more image of each source, spread over the names."""
    return (confusion + 1 / len(confusion)) / (confusion.sum(1, keepdim=True) + 1)


def most_likely_proportions(counts: Tensor, rates: Tensor) -> Tensor:
    """Return the proportions p [true] under which counts [named] of a mixture p @ rates are most likely (by EM)."""
    shares, p = counts / counts.sum(), torch.full_like(counts, 1 / len(counts))
    for _ in range(ITERATIONS):
        p = p * (rates @ (shares / (p @ rates)))
    return p


def p_value(counts: Tensor, confusion: Tensor, prior: Tensor) -> float:
    """Return how often counts [named] would be this far from what the prior [true] leads to, or farther.

    Chi-square of the shares of names against prior @ rates, with the covariance of both: that of the n samples, and
    that of the held-out images that the rates were counted on.
    """
    rates = _rates(confusion)
    expected = prior @ rates
    covariance = _multinomial(expected) / counts.sum()
    for share, own, n in zip(prior, rates, confusion.sum(1), strict=True):
        covariance = covariance + share.square() * _multinomial(own) / n
    difference = (counts / counts.sum() - expected)[:-1]  # the last one is what is left
    square = difference @ torch.linalg.solve(covariance[:-1, :-1], difference)
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, square / 2))


def _multinomial(shares: Tensor) -> Tensor:
    """Return the covariance of one draw with these probabilities."""
    return shares.diag() - torch.outer(shares, shares)
