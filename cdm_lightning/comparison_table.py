"""A comparison as text: two narrow tables for the terminal, the same and the proportions in Markdown."""

from collections.abc import Iterable
from typing import Any

from cdm_lightning import text_tables
from cdm_lightning.metrics import score_name
from cdm_lightning.text_tables import aligned

NOTHING = "-"
MEBIBYTE = 2**20
Rows = list[list[str]]


def terminal(report: dict[str, Any]) -> str:
    """Return a report as two tables, what they are measured with, and what repeats them."""
    tables = (aligned(quality(report)), aligned(cost(report)))
    return "\n\n".join([*tables, "\n".join([*remarks(report), settings(report)])])


def markdown(report: dict[str, Any]) -> str:
    """Return a report as Markdown."""
    tables = [quality(report), cost(report), *([proportions(report)] if report["judge"] else [])]
    notes = "\n".join(f"- {line}" for line in [*remarks(report), *EXPLAINED, settings(report)])
    return "\n\n".join([*map(text_tables.markdown, tables), notes]) + "\n"


EXPLAINED = (
    "in brackets: 1.96 standard errors to both sides, of the expected score of this many images, from half-samples of "
    "generated and reference images; of the ratio from the same halves for both",
    "seconds: medians, in turns with the base on the same machine, closed forms included; memory: the most that a "
    "process holds which does nothing but sample one batch",
    "off prior: total variation distance of the proportions of sources from their prior, as a classifier "
    "sees them that was trained for this alone, corrected for what it confuses on held-out images; p: of the "
    "hypothesis that there is no difference",
    "off alone: the same, corrected for what the classifier confuses on samples of each source alone, those of the row "
    "assign; only of rows of the same compartments",
    "near-copies: nearer to a training image of the sources, pixel by pixel, than all but 1 % of held-out images",
)


NOTES = {  # by parts of a row
    "classifier": "classifier, not exact: its weights are those of one classifier that has seen all sources at once; "
    "what the classifier costs is in s/image, not in evaluations",
    "soup": "soup, not exact: the average of networks is not the network of the mixture",
}


def quality(report: dict[str, Any]) -> Rows:
    """Return the table of scores, as cells."""
    n, extractor = report["n"], report["extractor"]
    frechet, kid, precision, recall = (
        score_name(metric, n, extractor) for metric in ("frechet", "kid", "precision", "recall")
    )
    title = f"{'FID' if extractor == 'inception' else 'Frechet'}@{n}"
    rows = [["row", title, f"/ {report['base']}", f"KID@{n}", "precision", "recall"]]
    for row in report["rows"]:
        intervals, found = row["intervals"], row["scores"]
        scores = [interval(intervals[frechet], 4), interval(row["frechet_ratio"], 4), interval(intervals[kid], 4)]
        rows.append([row["name"], *scores, f"{found[precision]:.3f}", f"{found[recall]:.3f}"])
    return rows


def cost(report: dict[str, Any]) -> Rows:
    """Return the table of what sampling costs, where samples come from and how many are copies, as cells."""
    head = [
        "row",
        "evaluations",
        "s/image",
        f"/ {report['base']}",
        "MiB",
        "off prior",
        "p",
        "off alone",
        "p",
        "near-copies",
    ]
    return [head, *([row["name"], *_cost(row)] for row in report["rows"])]


def _cost(row: dict[str, Any]) -> list[str]:
    memory, copies = row["peak_memory"], row["near_copies"]
    percent = {name: 100 * value for name, value in copies.items()}
    return [
        f"{row['network_evaluations_per_image']:.1f}",
        f"{row['seconds_per_image']:.3f}",
        f"{row['seconds_ratio']:.2f}",
        NOTHING if memory is None else f"{memory / MEBIBYTE:.0f}",
        *_distance(row["proportions"]),
        *_distance(row["proportions_alone"]),
        f"{percent['value']:.1f} % [{percent['low']:.1f}, {percent['high']:.1f}]",
    ]


def _distance(judged: dict[str, Any] | None) -> list[str]:
    return [NOTHING] * 2 if judged is None else [f"{judged['distance']:.3f}", f"{judged['p_value']:.2g}"]


def proportions(report: dict[str, Any]) -> Rows:
    """Return the table of corrected proportions by source, as cells."""
    prior = report["prior"]
    rows = [["row", *prior], ["prior", *_shares(prior, prior)]]
    return rows + [[row["name"], *_shares(row["proportions"]["corrected"], prior)] for row in report["rows"]]


def _shares(shares: dict[str, float], sources: Iterable[str]) -> list[str]:
    return [f"{shares[source]:.3f}" for source in sources]


def interval(found: dict[str, float], digits: int) -> str:
    """Return a value and its ends, to so many significant digits of the larger end, or decimal places."""
    largest = max(abs(found["low"]), abs(found["high"]))
    places = next((k for k in range(digits) if largest * 10**k >= 10 ** (digits - 1)), digits)
    value, low, high = (f"{found[name]:.{places}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def remarks(report: dict[str, Any]) -> list[str]:
    """Return what the rows are measured with."""
    heldout, judge = report["near_copies_heldout"], report["judge"]
    copies = (
        f"near-copies among held-out images: {heldout['value']:.1%}; nearest of {report['training_images']} training "
        f"images, at most {report['near_copies_threshold']:.1f} grey levels (rms)"
    )
    why = "there is one source" if len(report["prior"]) == 1 else "--judge_images is 0"
    sources = f"proportions of sources: not judged, {why}"
    if judge is not None:
        sources = f"judge of sources: right about {judge['accuracy']:.1%} of held-out images"
    free = [row["name"] for row in report["rows"] if not row["by_class"]] if report["by_class"] else []
    notes = [NOTES[part] for part in NOTES if any(row["model"]["parts"] == part for row in report["rows"])]
    return [copies, sources, *(f"{name}: sampled without a class" for name in free), *notes]


def settings(report: dict[str, Any]) -> str:
    """Return what repeats a report, in one line."""
    by_class = " by class" if report["by_class"] else ""
    return (
        f"n {report['n']}{by_class}, {report['sampler']} {report['steps']} steps, seed {report['seed']}, "
        f"extractor {report['extractor']}, {report['reference_images']} held-out images of {report['root']}"
    )
