"""The part of a `report` page that an audit fills: a table per model, and its verdicts in words."""

from collections.abc import Mapping
from html import escape
from typing import Any

from cdm_lightning.audit_table import canary_line, exceeded, settings_line
from cdm_lightning.page_elements import heading, paragraph, ranged, table

MEANING = (
    "Near-copies are samples that are nearer to a training image than all but 1 % of new images are: a model whose "
    "samples are like new images has 1 %. Beside them, how far samples are from their nearest training image (median, "
    "in grey levels), and how far held-out images are. AUC says how well somebody who has an image and the model can "
    "tell whether it was trained on it: 0.5 is guessing, 1 is always. A rule that should name at most 1 % of other "
    "images falsely finds so many of the training images, and does name so many others; the last column is what it "
    "looks at."
)
CLOSEST = "Pictures of the closest pairs are in the folder that `audit --out` wrote: they show training images."


def audited(report: Mapping[str, Any] | None) -> list[str]:
    """Return the findings of an audit, or how to get them."""
    if report is None:
        said = "Not there: python -m cdm_lightning audit ... --json FILE, then report --audit FILE."
        return [paragraph(said, "soft")]
    parts = [paragraph(MEANING)]
    for row in report["rows"]:
        found = [paragraph(text.capitalize(), kind) for text, kind in verdicts(row["verdict"])]
        parts += [heading(f"Model: {row['name']}"), *found, _table(row["groups"]), _chances(row["verdict"])]
    parts += [paragraph(said, kind) for said, kind in canaries(report)]
    return [*parts, paragraph(CLOSEST, "soft"), paragraph(settings_line(dict(report)), "soft")]


def canaries(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what canaries have shown of private sources in words, each with its kind; nothing, if there were none."""
    return [(canary_line(one) + ".", "bad" if exceeded(one) else "good") for one in report.get("canaries", [])]


def verdicts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the two verdicts on a model in words, each with its kind: `good` or `bad`."""
    copied = ", ".join(f"{one['group']} ({one['space']})" for one in found["near_copies"])
    told = ", ".join(found["told_apart"])
    copies = (
        f"more near-copies than new images have: {copied}." if copied else "no more near-copies than new images have."
    )
    apart = f"training images can be told from others: {told}." if told else "training images are not told from others."
    return [(copies, "bad" if copied else "good"), (apart, "bad" if told else "good")]


def _chances(found: Mapping[str, Any]) -> str:
    """Return how far the verdicts could be chance."""
    said = (
        f"Were there nothing to find, the most suspicious of {found['near_copies_comparisons']} numbers of near-copies "
        f"would have a probability of {found['near_copies_least_chance']:.2g}, the most suspicious of "
        f"{found['told_apart_comparisons']} AUCs one of {found['told_apart_least_chance']:.2g}. It is called a finding "
        "if that is so small that one audit in twenty at most would be wrong."
    )
    return paragraph(said, "soft")


def _table(groups: Mapping[str, Any]) -> str:
    spaces = list(next(iter(groups.values()))["memorization"])
    near = [f"near-copies, {escape(space)}" for space in spaces]
    head = ["whose", *near, "distance / held-out", "AUC", "found", "falsely", "by"]
    rows = [_cells(group, found) for group, found in groups.items()]
    return table(head, rows, numbers=range(1, len(head) - 1))


def _cells(group: str, found: Mapping[str, Any]) -> list[str]:
    copies, told = found["memorization"], found["membership"]
    pixels, area = copies["pixels"], told["auc"]
    return [
        escape(group),
        *(_percent(one["near_copies"]) for one in copies.values()),
        f"{pixels['median']:.1f} / {pixels['heldout_median']:.1f}",
        ranged(f"{area['value']:.2f}", f"{area['low']:.2f}", f"{area['high']:.2f}"),
        _percent(told["true_positives"]),
        _percent(told["false_positives"]),
        escape(told["statistic"]),
    ]


def _percent(share: Mapping[str, float]) -> str:
    return ranged(f"{share['value']:.1%}", f"{100 * share['low']:.1f}", f"{100 * share['high']:.1f}")
