"""What forgetting did to the others: samples from the same noise, of a copy of the store before and of the store now.

A source alone is a function of its compartment and the backbone, so it must not have changed at all. The composed model
must have: one of its terms is gone, and the weights of the others are scaled to sum 1 again.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdm_lightning import ledger
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.errors import BadInput
from cdm_lightning.generation import Batch, Settings, batched, finite_or_text, sample_batch
from cdm_lightning.images import to_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.sheets import enlarged, framed
from cdm_lightning.store import COMPARTMENT, LEDGER, Store
from cdm_lightning.tensor_files import file_sha256

GREY_LEVELS = 127.5  # in a unit of x_0
SHOWN = 12  # images in a row of the picture


@dataclass(frozen=True)
class SourceChange:
    """What became of a remaining source, sampled alone.

    Attributes:
        source: its name.
        same_bytes: whether its compartment has the same bytes in both stores.
        samples_forgotten: whether the store's ledger says that it was fitted again without some of its images, after
            the copy was made; then it may differ.
        largest: difference of a pixel of the samples, before rounding, in grey levels of 0..255.
        rms: of all pixels of all samples, likewise.
    """

    source: str
    same_bytes: bool
    samples_forgotten: bool
    largest: float
    rms: float

    @property
    def holds(self) -> bool:
        """Whether it is as it should be: exactly what it was, unless it was itself to change."""
        return self.samples_forgotten or (self.same_bytes and self.largest == 0)


@dataclass(frozen=True)
class ComposedChange:
    """What became of the composed model's samples.

    Attributes:
        same: number of pictures that are the same, byte for byte.
        rms: difference of the others, in grey levels; None if there are none.
        drawn: which source each image followed before and now; None if the strategy draws none.
        prior: lambda_i by source, before and now.
    """

    same: int
    rms: float | None
    drawn: list[tuple[str, str]] | None
    prior: tuple[Mapping[str, float], Mapping[str, float]]


@dataclass(frozen=True)
class Collateral:
    """All that was compared.

    Attributes:
        gone: sources that the store has no longer.
        alone: the remaining sources, each sampled alone.
        composed: the composed model.
        samples: x_0 [image, channel, height, width] before and now, by remaining source, and of the composed model.
    """

    gone: list[str]
    alone: list[SourceChange]
    composed: ComposedChange
    samples: list[tuple[Tensor, Tensor]] = field(repr=False)

    @property
    def holds(self) -> bool:
        """Whether every remaining source alone is as it should be."""
        return all(change.holds for change in self.alone)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the samples as JSON."""
        before, after = self.composed.prior
        return {
            "gone": self.gone,
            "alone": [asdict(change) | {"holds": change.holds} for change in self.alone],
            "composed": asdict(self.composed) | {"prior": {"before": dict(before), "now": dict(after)}},
            "holds": self.holds,
        }


def collateral(before: Store, after: Store, settings: Settings) -> Collateral:
    """Sample every remaining source alone, and the composed model, from the same noise in both stores.

    Args:
        before: a copy of the store, made before something was forgotten.
        after: the store now.
        settings: number of images (of each source, and of the composed model), noise, sampler, strategy.

    Raises:
        BadInput: the stores cannot be compared.
    """
    check_comparable(before, after)
    switch, shape = settings.sigma_switch, after.info.image_shape
    models = [
        open_compartments(
            store, "all", sigma_switch=None if switch is None else float(switch), device=settings.device
        ).composed(settings.strategy)
        for store in (before, after)
    ]
    changes, samples = list[SourceChange](), list[tuple[Tensor, Tensor]]()
    for source in after.sources():
        old, new = (sampled(model.alone(source), shape, settings).images for model in models)
        changes.append(source_change(before, after, source, old, new))
        samples.append((old, new))
    batches = [sampled(model, shape, settings) for model in models]
    samples.append((batches[0].images, batches[1].images))
    gone = [source for source in before.sources() if source not in after.sources()]
    return Collateral(gone, changes, composed_change(models, batches), samples)


def check_comparable(before: Store, after: Store) -> None:
    """Raise BadInput unless `after` can be what forgetting left of `before`."""
    if before.info != after.info:
        raise BadInput(
            f"{before.path} and {after.path} have different backbones: compare a store with a copy of itself"
        )
    new = [source for source in after.sources() if source not in before.sources()]
    if new:
        raise BadInput(
            f"{before.path} has no compartment of {', '.join(new)}, which {after.path} has: name the copy that was "
            "made before the forgetting with --before, and the store with --store"
        )
    if not after.sources():
        raise BadInput(f"{after.path} has no compartment left, so forgetting can have changed no other source")


def sampled(model: ComposedDenoiser, shape: tuple[int, int, int], settings: Settings) -> Batch:
    """Return `settings.n` samples and the sources that they followed, without weights along the way."""
    indices = batched(settings.n, settings.batch_size)
    batches = [sample_batch(model, shape, part, settings, weigh=False) for part in indices]
    drawn = [source for batch in batches for source in batch.drawn or ()]
    return Batch(torch.cat([batch.images for batch in batches]), drawn or None, [])


def source_change(before: Store, after: Store, source: str, old: Tensor, new: Tensor) -> SourceChange:
    """Return what became of one source, given its samples [image, channel, height, width] before and now."""
    hashes = [file_sha256(store.folder(source) / COMPARTMENT) for store in (before, after)]
    difference = grey_difference(old, new)
    fitted_again = hashes[0] != hashes[1] and forgotten_since(before, after, source)
    return SourceChange(source, hashes[0] == hashes[1], fitted_again, _largest(difference), _rms(difference))


def forgotten_since(before: Store, after: Store, source: str) -> bool:
    """Return whether the ledger of `after` says that something of a source was forgotten, and that of `before` not."""
    said = [
        {entry for entry in ledger.read(store.path / LEDGER) if entry.source == source} for store in (after, before)
    ]
    return any(entry.event == "forgotten" for entry in said[0] - said[1])


def composed_change(models: list[ComposedDenoiser], batches: list[Batch]) -> ComposedChange:
    """Return what became of the composed model, given its samples before and now."""
    old, new = (to_uint8(batch.images) for batch in batches)
    same = (old == new).flatten(1).all(1)
    others = grey_difference(batches[0].images[~same], batches[1].images[~same])
    drawn = [batch.drawn for batch in batches]
    priors = [dict(zip(model.sources, model.prior.tolist(), strict=True)) for model in models]
    return ComposedChange(
        int(same.sum()),
        _rms(others) if len(others) else None,
        None if drawn[0] is None or drawn[1] is None else list(zip(drawn[0], drawn[1], strict=True)),
        (priors[0], priors[1]),
    )


def grey_difference(old: Tensor, new: Tensor) -> Tensor:
    """Return new - old in grey levels of 0..255, not rounded; a sample that is no number differs without bound."""
    return ((new.double() - old.double()) * GREY_LEVELS).nan_to_num(nan=math.inf)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def picture(found: Collateral) -> Tensor:
    """Return three rows per source, then three of the composed model: before, now, how many grey levels between them.

    uint8 [channel, height, width]; the first 12 images of each.
    """
    rows = []
    for old, new in found.samples:
        images = [to_uint8(some[:SHOWN].cpu()) for some in (old, new)]
        rows += [*images, (images[0].int() - images[1].int()).abs().to(torch.uint8)]
    return framed(enlarged(torch.stack(rows)))


def settings_said(settings: Settings) -> dict[str, Any]:
    """Return how the samples were made, as JSON."""
    names = ("n", "seed", "sampler", "steps", "strategy", "batch_size", "device")
    switch = None if settings.sigma_switch is None else finite_or_text(float(settings.sigma_switch))
    return {name: getattr(settings, name) for name in names} | {"sigma_switch": switch}
