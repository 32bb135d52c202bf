"""An audit as text: a line per model and group, a verdict per model, and what repeats it."""

from collections.abc import Mapping
from typing import Any

from cdm_lightning.text_tables import aligned

HEAD = ("row", "group", "median / held-out", "AUC", "found at 1 %", "falsely", "by")


def table(report: dict[str, Any]) -> str:
    """Return a report as text."""
    rows = report["rows"]
    shown = list(next(iter(rows[0]["groups"].values()))["memorization"])
    head = [*HEAD[:2], *(f"near-copies, {space}" for space in shown), *HEAD[2:]]
    cells = [line(row["name"], group, found) for row in rows for group, found in row["groups"].items()]
    canaries = map(canary_line, report.get("canaries", []))
    return "\n".join([aligned([head, *cells]), "", *map(verdict_line, rows), *canaries, settings_line(report)])


def line(row: str, group: str, found: Mapping[str, Any]) -> list[str]:
    """Return the cells of a model and a group."""
    copies, told = found["memorization"], found["membership"]
    pixels = copies["pixels"]
    return [
        row,
        group,
        *(percent(one["near_copies"]) for one in copies.values()),
        f"{pixels['median']:.1f} / {pixels['heldout_median']:.1f}",
        f"{told['auc']['value']:.2f} [{told['auc']['low']:.2f}, {told['auc']['high']:.2f}]",
        percent(told["true_positives"]),
        percent(told["false_positives"]),
        told["statistic"],
    ]


def percent(share: Mapping[str, float]) -> str:
    """Return a share and its interval in percent."""
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def verdict_line(row: dict[str, Any]) -> str:
    """Return the verdict on a model in words."""
    found = row["verdict"]
    where = ", ".join(f"{one['group']} ({one['space']})" for one in found["near_copies"])
    copies = (
        f"MORE near-copies than among new images: {where}" if where else "no more near-copies than among new images"
    )
    groups = ", ".join(found["told_apart"])
    told = f"members ARE told from held-out images: {groups}" if groups else "members are not told from held-out images"
    return (
        f"{row['name']}: {copies} [{found['near_copies_comparisons']} comparisons, least chance "
        f"{found['near_copies_least_chance']:.2g}]; {told} [{found['told_apart_comparisons']} comparisons, least "
        f"chance {found['told_apart_least_chance']:.2g}]"
    )


def canary_line(found: Mapping[str, Any]) -> str:
    """Return what canaries have shown of a private source, beside what is stated."""
    bound, form = found["epsilon_at_least"], found["closed_form"]
    verdict = "; MORE than that, so something is wrong" if exceeded(found) else ""
    share = "" if form >= found["stated"] * (1 - 1e-6) else f", {form:.3g} of it for the closed form"
    return (
        f"{found['source']}: canaries show an epsilon of at least {bound:.2f} (95 %) for the closed form; stated is "
        f"{found['stated']:g} at delta {found['delta']:g}{share}{verdict} [{found['releases']} releases of "
        f"{found['images']} images, every second one with a canary]"
    )


def exceeded(found: Mapping[str, Any]) -> bool:
    """Return whether canaries have shown a larger epsilon than a closed form is said to have."""
    return bool(found["epsilon_at_least"] > found["closed_form"])


def settings_line(report: dict[str, Any]) -> str:
    """Return what repeats a report, in one line."""
    training, heldout = (sum(count[part] for count in report["images"].values()) for part in ("training", "heldout"))
    return (
        f"n {report['n']}, {report['sampler']} {report['steps']} steps, seed {report['seed']}, extractor "
        f"{report['extractor']}; {report['members']} members of a source at most, {report['draws']} draws, sigma "
        f"{', '.join(f'{sigma:g}' for sigma in report['sigmas'])}; {training} training and {heldout} held-out images "
        f"of {report['root']}"
    )
