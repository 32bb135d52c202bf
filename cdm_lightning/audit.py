"""An audit of a model: does it reproduce training images, and can one tell who was in it?

By group: the composed model on the images of all sources, and each source's own model on those of the source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.contenders import Contender, Opened
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import sampled_images
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.generation import Settings, finite_or_text
from cdm_lightning.images import from_uint8
from cdm_lightning.measurement import COMPOSED
from cdm_lightning.membership import SIGMAS, attack, density_statistics, loss_statistics, losses
from cdm_lightning.memorization import Images, Pair, memorization, spaces
from cdm_lightning.near_copies import NearCopies
from cdm_lightning.seeding import generator

ALARM = 0.05  # of all comparisons of a kind together


@dataclass(frozen=True)
class Known:
    """Training and held-out images of one source."""

    training: Images
    heldout: Images


@dataclass(frozen=True)
class Found:
    """A pair of a group of a row.

    Attributes:
        row: the name of the model.
        group: `composed`, or the source whose own model was sampled.
        pair: both images by index.
        source: whose training image it is.
        place: index among those of this source.
        sample: uint8 [channel, height, width].
        training: likewise.
    """

    row: str
    group: str
    pair: Pair
    source: str
    place: int
    sample: Tensor
    training: Tensor


class Audit:
    """What models are audited with: the same images, noise and groups for all of them.

    Args:
        known: images by source.
        settings: how images are sampled; the strategy is the contender's own.
        extractor: of the features in `known`; None compares pixels alone.
        members: training images, and held-out ones, of each source whose denoising error is measured, at most.
        draws: noises of each image and level.
    """

    def __init__(
        self,
        known: Mapping[str, Known],
        settings: Settings,
        extractor: FeatureExtractor | None,
        members: int,
        draws: int,
    ) -> None:
        self.known, self.settings, self.extractor = known, settings, extractor
        shape = next(iter(known.values())).training.pixels.shape[1:]
        self.noise = torch.randn((draws, *shape), generator=generator(settings.seed, "audit", "noise"))
        self.measured = {
            source: (
                chosen(images.training.pixels, members, settings.seed, source, "training"),
                chosen(images.heldout.pixels, members, settings.seed, source, "heldout"),
            )
            for source, images in known.items()
        }
        self._judges: dict[str, Mapping[str, NearCopies]] = {}

    def row(self, contender: Contender, opened: Opened) -> tuple[dict[str, Any], list[Found]]:
        """Return what is measured of a model, as JSON, and the pairs of all its samples, most suspicious first."""
        groups, pairs = dict[str, Any](), list[Found]()
        for group, sources, model in self._groups(opened):
            samples = sampled_images(model, opened.compartments.public.closed_form.shape, self.settings).cpu()
            features = None if self.extractor is None else self.extractor(samples.to(self.settings.device))
            copies, nearest = memorization(Images(samples, features), self._judge(group, sources))
            pairs += [self._found(contender.name, group, sources, samples, pair) for pair in nearest]
            groups[group] = {"memorization": copies, "membership": self._membership(opened, sources, model)}
        row = {
            "name": contender.name,
            "model": contender.identity(),
            "sigma_switch": finite_or_text(opened.composed.sigma_switch),
            "groups": groups,
            "verdict": verdict(groups),
        }
        return row, sorted(pairs, key=lambda found: found.pair.ratio)

    def _groups(self, opened: Opened) -> Iterator[tuple[str, list[str], ComposedDenoiser]]:
        """Yield groups with their sources and models; a model of other sources is audited as a whole."""
        sources = list(self.known)
        yield COMPOSED, sources, opened.composed
        if set(opened.composed.sources) == set(sources) and len(sources) > 1:
            for source in sources:
                yield source, [source], opened.composed.alone(source)

    def _judge(self, group: str, sources: Sequence[str]) -> Mapping[str, NearCopies]:
        if group not in self._judges:
            training, heldout = (
                joined([getattr(self.known[source], part) for source in sources]) for part in ("training", "heldout")
            )
            self._judges[group] = spaces(training, heldout)
        return self._judges[group]

    def _found(self, row: str, group: str, sources: Sequence[str], samples: Tensor, pair: Pair) -> Found:
        """Return a pair with its images, and where the training image is in its source."""
        place = pair.training
        for source in sources:
            images = self.known[source].training.pixels
            if place < len(images):
                return Found(row, group, pair, source, place, samples[pair.sample], images[place])
            place -= len(images)
        raise AssertionError("a pair has a training image")

    def _membership(self, opened: Opened, sources: Sequence[str], model: ComposedDenoiser) -> dict[str, Any]:
        """Return how well members are told from held-out images, as JSON.

        Of several sources, each has as many members as held-out images: else one would tell sources apart.
        """
        pairs = [self.measured[source] for source in sources]
        most = [min(map(len, pair)) if len(sources) > 1 else None for pair in pairs]
        members, others = (
            torch.cat([pair[i][:count] for pair, count in zip(pairs, most, strict=True)]).to(self.settings.device)
            for i in range(2)
        )
        forms, prior = closed_forms(opened.compartments, model.sources)
        theirs, rest = (self._statistics(model, forms, prior, side) for side in (members, others))
        return asdict(attack(theirs, rest, self.settings.seed))

    def _statistics(
        self, model: ComposedDenoiser, forms: Sequence[Gaussians], prior: Sequence[float], images: Tensor
    ) -> dict[str, Tensor]:
        x_0 = from_uint8(images)
        return loss_statistics(losses(model, x_0, self.noise)) | density_statistics(forms, prior, x_0)


def chosen(images: Tensor, most: int, seed: int, *purpose: str) -> Tensor:
    """Return at most this many of the images [n, ...], drawn without replacement."""
    return images[torch.randperm(len(images), generator=generator(seed, "audit", *purpose))[:most]]


def joined(parts: Sequence[Images]) -> Images:
    """Return images of several sources as one; with features if all have some."""
    features = [part.features for part in parts if part.features is not None]
    return Images(torch.cat([part.pixels for part in parts]), torch.cat(features) if features else None)


def closed_forms(compartments: Compartments, sources: Sequence[str]) -> tuple[list[Gaussians], list[float]]:
    """Return the closed forms of sources and their shares, if the denoisers are closed forms at all levels; or none."""
    if compartments.sigma_switch > min(SIGMAS):
        return [], []
    prior = compartments.prior()
    total = sum(prior[source] for source in sources)
    return [compartments.closed_forms[source] for source in sources], [prior[source] / total for source in sources]


def verdict(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return which comparisons raise an alarm: 5 % false alarms in all of a kind together (Bonferroni)."""
    copies = {
        (group, space): one["chance"] for group, found in groups.items() for space, one in found["memorization"].items()
    }
    told = {group: found["membership"]["chance"] for group, found in groups.items()}
    return {
        "near_copies": [
            {"group": group, "space": space}
            for (group, space), chance in copies.items()
            if chance * len(copies) < ALARM
        ],
        "near_copies_comparisons": len(copies),
        "near_copies_least_chance": min(copies.values()),
        "told_apart": [group for group, chance in told.items() if chance * len(told) < ALARM],
        "told_apart_comparisons": len(told),
        "told_apart_least_chance": min(told.values()),
    }
