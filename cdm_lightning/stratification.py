"""Stratified classes: which class each of n sampled images has, in the proportions of the training images."""

from collections import Counter
from collections.abc import Mapping, Sequence

from cdm_lightning.errors import BadInput
from cdm_lightning.store import Store


def class_counts(store: Store, sources: Sequence[str]) -> dict[str, int]:
    """Return the number of training images of every class in the union of sources, sorted by class.

    Raises:
        BadInput: a source is unknown, or was fitted without class labels.
    """
    counts: Counter[str] = Counter()
    for source in store.choose(list(sources)):
        card = store.read_card(source)
        if not card.settings.get("class_labels"):
            raise BadInput(
                f"--by_class samples under classes, but source '{source}' of {store.path} was fitted without class "
                "labels: fit it again with model.class_labels true, or leave --by_class out"
            )
        counts.update(card.class_counts)
    return dict(sorted(counts.items()))


def quotas(counts: Mapping[str, int], n: int) -> dict[str, int]:
    """Return how many of n images each class gets: its share, rounded by the largest remainder (Hamilton).

    Every quota is the share times n, rounded down or up; they add up to n. Of equal remainders the first is rounded up.

    Args:
        counts: training images by class, at least one in all.
        n: images, at least 1.
    """
    total = sum(counts.values())
    parts = {label: divmod(count * n, total) for label, count in counts.items()}
    left = n - sum(whole for whole, _ in parts.values())
    rounded_up = sorted(parts, key=lambda label: -parts[label][1])[:left]
    return {label: whole + (label in rounded_up) for label, (whole, _) in parts.items()}


def spread(counts: Mapping[str, int], n: int) -> list[str]:
    """Return the class of each of n images: every class as often as its quota says, and evenly spread.

    Image k gets the class that lags most behind its share of k + 1 images, among those whose quota is not used up;
    of equal ones the first. Before a quota is used up, no class is an image ahead of its share; so quotas decide only
    about the last images, about as many as 1 / the smallest share, and all others have the same class whatever n.

    Args:
        counts: see `quotas`.
        n: likewise.
    """
    total, left = sum(counts.values()), quotas(counts, n)
    taken = dict.fromkeys(counts, 0)
    classes = []
    for k in range(1, n + 1):
        lag = {label: counts[label] * k - taken[label] * total for label in counts if taken[label] < left[label]}
        chosen = max(lag, key=lag.__getitem__)
        taken[chosen] += 1
        classes.append(chosen)
    return classes


def strata(counts: Mapping[str, int], n: int) -> dict[str, list[int]]:
    """Return which of n images have each class, in rising order; a class without any is left out."""
    found: dict[str, list[int]] = {}
    for k, label in enumerate(spread(counts, n)):
        found.setdefault(label, []).append(k)
    return dict(sorted(found.items()))
