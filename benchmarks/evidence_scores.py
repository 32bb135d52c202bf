"""Scores of posteriors of the source by noise level, and their curves."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.evidence_estimators import SIGMAS
from cdm_lightning.attribution import accuracy, cross_entropy
from cdm_lightning.public import TEMPERATURES

Densities = Mapping[float, Tensor]
SURE = 0.95


def by_source(weights: Tensor) -> list[Tensor]:
    """Split weights [source, source * image] into one [source, image] per true source."""
    return list(weights.chunk(len(weights), dim=1))


def loss(density: Tensor, temperature: float) -> float:
    """Return the cross-entropy of the posterior of log densities [source, source * image], in nats; equal priors."""
    return cross_entropy(by_source((density / temperature).softmax(0)))


def judged(real: Densities, pseudo: Densities) -> list[dict[str, float]]:
    """Return the scores at each level, by a temperature that was fitted on the pseudo-sources.

    Of sources that are random parts of the same images no posterior can know more than ln(sources): `excess` is the
    tempered cross-entropy less that, above 0 where the posterior is surer than it may be; `sure` is the share of images
    whose largest weight is above SURE.
    """
    scores = []
    for sigma, density in real.items():
        temperature = min(TEMPERATURES.tolist(), key=lambda t: loss(pseudo[sigma], t))
        scores.append(
            {
                "sigma": sigma,
                "cross_entropy": loss(density, 1.0),
                "tempered": loss(density, temperature),
                "temperature": temperature,
                "excess": loss(density, temperature) - math.log(len(density)),
                "sure": float(((density / temperature).softmax(0).amax(0) > SURE).float().mean()),
                "accuracy": accuracy(by_source(density.softmax(0))),
            }
        )
    return scores


def draw_noise(density: Densities, again: Densities) -> list[dict[str, float]]:
    """Return, at each level in nats, how much of the differences between sources is the noise of the draws.

    Both are log densities [source, image] of the same images, from independent draws. `between_draws` is the deviation
    of one of them by its draws, `between_sources` that of its differences between sources, noise included.
    """
    rows = []
    for sigma, first in density.items():
        one, other = first - first.mean(0), again[sigma] - again[sigma].mean(0)
        noise = float((one - other).std()) / math.sqrt(2)
        rows.append({"sigma": sigma, "between_draws": noise, "between_sources": float(one.std())})
    return rows


def logit_error(sigma: float, logit: Tensor) -> dict[str, float]:
    """Return how often a head calls a held-out image of its own, or of another source, its own rather than public."""
    own = torch.eye(len(logit), dtype=torch.bool).repeat_interleave(logit.shape[1] // len(logit), dim=1)
    return {
        "sigma": sigma,
        "own_above_0": float((logit[own] > 0).float().mean()),
        "others_above_0": float((logit[~own] > 0).float().mean()),
        "own_mean_logit": float(logit[own].mean()),
        "others_mean_logit": float(logit[~own].mean()),
    }


def curves(result: dict[str, Any]) -> Figure:
    """Draw cross-entropy, raw and tempered, and accuracy over the noise level."""
    figure = Figure(figsize=(11, 4.6), dpi=110)
    left, right = figure.subplots(1, 2)
    for number, (name, scores) in enumerate(sorted(result["estimators"].items())):
        sigma, colour = [level["sigma"] for level in scores["levels"]], f"C{number}"
        for key, style, label in (("tempered", "-", name), ("cross_entropy", ":", None)):
            left.plot(sigma, [level[key] for level in scores["levels"]], style, color=colour, label=label, marker=".")
        right.plot(sigma, [level["accuracy"] for level in scores["levels"]], color=colour, marker=".")
    chance = math.log(result["sources"])
    left.axhline(chance, color="grey", linewidth=0.8)
    left.annotate("knowing nothing", (SIGMAS[0], chance), ha="right", va="bottom", fontsize=8, color="grey")
    left.set(xscale="log", xlabel="sigma", ylabel="cross-entropy, nats", ylim=(0, 1.5 * chance))
    left.set_title("cross-entropy: lines tempered, dotted raw", fontsize=10)
    right.set(xscale="log", xlabel="sigma", ylabel="accuracy", ylim=(0, 1))
    right.set_title("accuracy", fontsize=10)
    left.legend(fontsize=8)
    figure.tight_layout()
    return figure
