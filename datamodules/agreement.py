"""Settings that would have made other shards than those that are there are refused.

What shards show of the settings they were written with follows from the hashes of their keys. Shards that were made in
another way, by somebody else's tool, show nothing; wherever a setting is refused, the text names one that is not.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdm_lightning.errors import ShardError
from datamodules.datasets import CLASSES
from datamodules.manifest import ImageShape, Manifest, Sample
from datamodules.names import HELDOUT, PUBLIC
from datamodules.plan import Plan
from datamodules.splits import heldout_draw, public_draw, public_labels, random_part, shard_of

Sources = Mapping[str, Manifest]


def check_agreement(root: Path, manifests: Sources, plan: Plan, split: str | None) -> None:
    """Compare the settings with the manifests of all that is to be used of `root`, by source, `public` among them.

    `plan` holds the settings, `split` the one of them that may be a default, which is None.

    Raises:
        ShardError: a setting is not the one that the shards were written with.
    """
    sources = {name: manifest for name, manifest in manifests.items() if name != PUBLIC}
    public = manifests[PUBLIC].samples if PUBLIC in manifests else {}
    findings = {
        "heldout_fraction": (plan.heldout_fraction, heldout_fault(manifests, plan.heldout_fraction)),
        "shards_per_source": (plan.shards_per_source, shards_fault(manifests, plan.shards_per_source)),
        "split": (plan.split, split_fault(sources, plan.split, is_default=split is None)),
        "public_fraction": (plan.public_fraction, public_fraction_fault(sources, public, plan.public_fraction)),
        "public_classes": (list(plan.public_classes), public_classes_fault(sources, public, plan)),
    }
    for setting, (value, fault) in findings.items():
        if fault:
            raise ShardError(f"data.{setting} is {value}, but the shards in '{root}' {fault}, or write them elsewhere")


def check_shape(root: Path, manifest: Manifest, plan: Plan) -> None:
    """Raise ShardError unless the images of a source below `root` are as large as the settings say."""
    there, asked = manifest.image, ImageShape(plan.image_size, plan.channels)
    if there != asked:
        raise ShardError(
            f"source '{manifest.source}' in '{root}' has images of size {there.size} with {there.channels} "
            f"channels, but the settings say size {asked.size} with {asked.channels} channels: set image_size and "
            "channels to those of the shards, or write the shards again"
        )


def heldout_fault(manifests: Sources, fraction: float) -> str | None:
    """Say what is wrong with `heldout_fraction`; None if nothing is, or the parts were not drawn by our hash."""
    samples = [(key, sample) for manifest in manifests.values() for key, sample in manifest.samples.items()]
    heldout = [heldout_draw(key) for key, sample in samples if sample.part == HELDOUT]
    return _fraction_fault(fraction, heldout, [heldout_draw(key) for key, sample in samples if sample.part != HELDOUT])


def public_fraction_fault(sources: Sources, public: Mapping[str, Sample], fraction: float) -> str | None:
    """Say what is wrong with `public_fraction`, of the classes that `public` shares with sources."""
    samples = {key: sample for manifest in sources.values() for key, sample in manifest.samples.items()}
    shared = {sample.label for sample in samples.values()}
    inside = [public_draw(key) for key, sample in public.items() if sample.label in shared]
    return _fraction_fault(fraction, inside, [public_draw(key) for key in samples])


def _fraction_fault(fraction: float, inside: Sequence[float], outside: Sequence[float]) -> str | None:
    """Compare a fraction with those that put the draws `inside` below it, and only these."""
    low, high = max(inside, default=-1.0), min(outside, default=math.nextafter(1, 0))
    if low >= high or low < fraction <= high:
        return None
    return f"were written with {shortest_fraction(low, high)}: set it to that"


def shortest_fraction(low: float, high: float) -> float:
    """Return the number with the fewest decimals that is above `low` and at most `high`, which is above `low`."""
    rounded = (math.floor(high * 10**digits) / 10**digits for digits in range(17))
    return next((number for number in rounded if low < number <= high), high)


def shards_fault(manifests: Sources, count: int) -> str | None:
    """Say what is wrong with `shards_per_source`; None if nothing is, or samples were not spread by our hash."""

    def spread(count: int) -> bool:
        return all(_is_spread(manifest, count) for manifest in by_size)

    by_size = sorted(manifests.values(), key=lambda manifest: len(manifest.samples))
    top = max((int(name.removesuffix(".tar")) for manifest in by_size for name in manifest.shards), default=0)
    candidates = _candidates(top, sum(len(manifest.samples) for manifest in by_size))
    shown = next((number for number in (count, *candidates) if spread(number)), count)
    return None if shown == count else f"were written with {shown}: set it to that"


def _is_spread(manifest: Manifest, count: int) -> bool:
    found = {name: shard.samples for name, shard in manifest.shards.items()}
    return dict(Counter(shard_of(key, count) for key in manifest.samples)) == found


def _candidates(top: int, samples: int) -> range:
    """Return how many shards or parts there may have been, if `top` is the highest index of one with samples.

    Left out is a number so high that the ones above `top` would all be empty less often than once in 10^9.
    """
    likely = (top + 1) * math.exp(math.log(1e9) / max(samples, 1))
    return range(top + 1, min(int(likely), top + 64) + 1)


def split_fault(sources: Sources, split: str, is_default: bool) -> str | None:
    """Say what is wrong with `split`: whether parts are random is seen in any case, classes are if they were asked."""
    if split in ("class", "folder", "list"):
        if shown := _random_parts(sources):
            return f"were written with random:{shown}: set it to that"
        return None if is_default or split != "class" else _class_fault(sources)
    if _are_parts(sources, int(split.removeprefix("random:"))):
        return None
    shown = _random_parts(sources)
    return f"were written with random:{shown}: set it to that" if shown else "hold no such parts: leave it out"


def _random_parts(sources: Sources) -> int | None:
    """Return N if the sources are random parts of N by our hash; not 1, of which any source could be the part."""
    if not sources or not all(re.fullmatch(r"part[0-9]+", name) for name in sources):
        return None
    top = max(int(name.removeprefix("part")) for name in sources)
    candidates = _candidates(top, sum(len(manifest.samples) for manifest in sources.values()))
    return next((number for number in candidates if number > 1 and _are_parts(sources, number)), None)


def _are_parts(sources: Sources, number: int) -> bool:
    return all(random_part(key, number) == name for name, manifest in sources.items() for key in manifest.samples)


def _class_fault(sources: Sources) -> str | None:
    for name, manifest in sources.items():
        if other := {sample.label for sample in manifest.samples.values()} - {name}:
            return f"have images of class '{min(other)}' in source '{name}': leave it out"
    return None


def public_classes_fault(sources: Sources, public: Mapping[str, Sample], plan: Plan) -> str | None:
    """Say what is wrong with `public_classes`; None where they are not given, or the data set has no known classes."""
    if not plan.public_classes or plan.from_ not in CLASSES:
        return None
    labels = public_labels(CLASSES[plan.from_], plan.public_classes)
    for name, manifest in sources.items():
        if both := labels & {sample.label for sample in manifest.samples.values()}:
            return f"have images of class '{min(both)}' in source '{name}': leave that class out"
    drawn = {key for key in public if public_draw(key) < plan.public_fraction}
    if other := {sample.label for key, sample in public.items() if key not in drawn} - labels:
        return f"have images of class '{min(other)}' in public: name that class too"
    return None
