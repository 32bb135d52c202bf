"""What the page of `report` says of a store: what it holds, what it makes, who is credited, and what happened to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdm_lightning import ledger
from cdm_lightning.attribution import HeldOutCredits, credits_of, heldout_credits
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.generation import Settings, batched, sample_batch
from cdm_lightning.intervals import Interval, mean_interval
from cdm_lightning.releases import cost_of
from cdm_lightning.store import LEDGER, Store
from cdm_lightning.store_commands import details_data

SHOWN = 10  # samples in a row of the picture


@dataclass(frozen=True)
class Share:
    """What the sampled images owe to one owner.

    Attributes:
        n: distinct training images.
        prior: lambda_i, its share of all chosen owners' images.
        credit: the mean of the samples' credits, with its interval over samples.
    """

    n: int
    prior: float
    credit: Interval


@dataclass(frozen=True)
class Sampled:
    """The samples of a page.

    Attributes:
        rows: of the composed model and of every source alone, [SHOWN or less, channel, height, width], from the same
            noise.
        sigmas: noise level at the start of every step.
        weights: mean weight of every source there [source, step].
        courses: the weights of the images in the first row [image, source, step].
        sigma_switch: where the network begins; inf if it is always there.
        n: images that weights and shares are of.
        shares: by source.
    """

    rows: Mapping[str, Tensor]
    sigmas: Sequence[float]
    weights: Tensor
    courses: Tensor
    sigma_switch: float
    n: int
    shares: Mapping[str, Share]


@dataclass(frozen=True)
class Findings:
    """All that a page says.

    Attributes:
        cards: see `cards_of`, by source.
        faults: what is wrong with the store's files; None where they were not all to be opened.
        history: entries of the ledger, oldest first, of the sources that may be named.
        chain: what is wrong with the ledger's chain, None if it holds.
        sampled: images and credits.
        credited: how held-out images are credited; None where a source has none.
        held_out: number of held-out images by source; empty where nobody knows where they are.
    """

    cards: Mapping[str, dict[str, Any]]
    faults: Sequence[str] | None
    history: Sequence[ledger.Entry]
    chain: str | None
    sampled: Sampled
    credited: HeldOutCredits | None
    held_out: Mapping[str, int]


def cards_of(store: Store, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of each source's compartment, by source: `details_data`, and what its privacy is."""
    return {source: details_data(store, source) | _privacy(store, source) for source in sources}


def _privacy(store: Store, source: str) -> dict[str, float | None]:
    cost = cost_of(store.path, store.read_card(source))
    return {"epsilon": None, "delta": None} if cost is None else {"epsilon": cost.epsilon, "delta": cost.delta}


def sampled(compartments: Compartments, settings: Settings) -> Sampled:
    """Sample the composed model, and a few images of each source alone from the same noise; credit the former."""
    composed, shape = compartments.composed(settings.strategy), compartments.public.closed_form.shape
    floor, images, courses, credits = compartments.public.calibration.floor, [], [], []
    for indices in batched(settings.n, settings.batch_size):
        batch = sample_batch(composed, shape, indices, settings)
        images.append(batch.images)
        courses.append(torch.stack([weights for _, weights in batch.trajectory]))
        with torch.inference_mode():
            credits.append(credits_of(composed, batch.images.clamp(-1, 1), floor, settings.seed))
        sigmas = [sigma for sigma, _ in batch.trajectory]
    few = range(min(settings.n, SHOWN))
    rows = {"composed": torch.cat(images)[: len(few)]} | {
        source: sample_batch(composed.alone(source), shape, few, settings, weigh=False).images
        for source in composed.sources
    }
    shares = shares_of(composed, compartments, torch.cat(credits, dim=1))
    course = torch.cat(courses, dim=2).permute(2, 1, 0)
    return Sampled(rows, sigmas, course.mean(0), course[: len(few)], composed.sigma_switch, settings.n, shares)


def shares_of(composed: ComposedDenoiser, compartments: Compartments, credits: Tensor) -> dict[str, Share]:
    """Return what images owe to every source, from their credits [source, n], n >= 2."""
    prior = compartments.prior()
    return {
        source: Share(compartments.compartments[source].n, prior[source], mean_interval(own.double()))
        for source, own in zip(composed.sources, credits, strict=True)
    }


def credited(compartments: Compartments, settings: Settings, held_out: Mapping[str, Tensor]) -> HeldOutCredits | None:
    """Return how held-out images, uint8 by source, are credited; see `attribution.heldout_credits`."""
    images = {source: some.to(settings.device) for source, some in held_out.items()}
    return heldout_credits(compartments.composed(settings.strategy), compartments.public.calibration.floor, images)


def history(store: Store, named: Sequence[str] | None) -> list[ledger.Entry]:
    """Return the entries of a store's ledger, of all sources or of those that may be named, oldest first."""
    entries = ledger.read(store.path / LEDGER)
    return [entry for entry in entries if named is None or entry.source in named]
