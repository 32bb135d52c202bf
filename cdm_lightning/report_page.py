"""The page of `report`: one HTML file without scripts, with its pictures inside, to read, print and keep."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cdm_lightning.attribution import HeldOutCredits
from cdm_lightning.intervals import Interval, share_interval
from cdm_lightning.ledger import Entry
from cdm_lightning.page_elements import (
    bar,
    bullets,
    contents,
    definitions,
    document,
    figure,
    named,
    paragraph,
    section,
    table,
)
from cdm_lightning.report import Findings, Sampled
from cdm_lightning.report_audit import audited, canaries, verdicts
from cdm_lightning.source_colours import colours

EVENTS = {"added": "added", "refitted": "fitted again", "forgotten": "forgotten"}
COMPARTMENTS = (
    "Each owner's part of the model is a folder of its own, a compartment. It was made from as many images as the "
    "table says, all of this owner, and depends on no other owner's. Where no prompt was trained, it consists of "
    "statistics of the images alone, its closed form; without privacy, those of a few can be nearly these images."
)
CREDIT = (
    "The credit of an owner is how probable it is that an image comes from that owner's data, by the owners' closed "
    "forms at low noise; credits of an image sum to 1. The table is their mean over the {n} sampled images; the thin "
    "line in a bar is the interval, the upright stroke the owner's share of all images. Credit says whose images a "
    "sample resembles, not that one was copied, and it is no price."
)
LINE = "; at the red line the network begins"
PATH = "Mean weight of every owner over the {n} samples, by noise level{line}."
COURSES = (
    "The samples of the first row above, and how the weights of the owners (in their colours) decide for each of them "
    "from left to right, as noise is taken off (the noise level is below){line}."
)


def page(
    title: str,
    findings: Findings,
    pictures: Mapping[str, str],
    audit: Mapping[str, Any] | None,
    facts: Mapping[str, str],
) -> str:
    """Return the page as text.

    Args:
        title: of the page.
        findings: what it says.
        pictures: data URIs, by name: `samples`, `path`, `courses`, and, if there are held-out images, `matrix`,
            `reliability` and `by_sigma`.
        audit: the report of the `audit` command, checked.
        facts: what repeats the page, by name.
    """
    made, line = findings.sampled, LINE if math.isfinite(findings.sampled.sigma_switch) else ""
    together = "Samples of all owners together (composed), and of each alone, from the same noise in every column."
    parts = {
        "What it holds": [paragraph(COMPARTMENTS), holdings(findings), verified(findings.faults)],
        "What it makes": [figure(pictures["samples"], together)],
        "Shares": [paragraph(CREDIT.format(n=made.n)), shares(made)],
        "From noise to image": [
            figure(pictures["courses"], COURSES.format(line=line)),
            figure(pictures["path"], PATH.format(n=made.n, line=line)),
        ],
        "How far to trust the credits": trust(list(findings.cards), findings, pictures),
        "History": [history(findings.history, findings.chain)],
        "Audit": audited(audit),
        "To repeat this page": [definitions(facts)],
    }
    said = "A diffusion model of several owners' data: what it holds, what it makes, and who is credited."
    top = [f"<h1>{escape(title)}</h1>", paragraph(said, "soft"), bullets(in_short(findings, audit)), contents([*parts])]
    return document(title, [*top, *(section(name, *inner) for name, inner in parts.items())])


def in_short(findings: Findings, audit: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the findings in a few lines, each with its kind."""
    images, credited = sum(card["n"] for card in findings.cards.values()), findings.credited
    owners = "1 owner" if len(findings.cards) == 1 else f"{len(findings.cards)} owners"
    lines = [(f"{owners} with {images:,} images.", ""), *_files(findings.faults)]
    if credited is not None:
        lines.append(_informative(credited))
    if audit is not None:
        for row in audit["rows"]:
            lines += [(f"Audit of {row['name']}: {text}", kind) for text, kind in verdicts(row["verdict"])]
        lines += [(f"Audit of {text}", kind) for text, kind in canaries(audit)]
    if findings.history:
        last = findings.history[-1]
        lines.append((f"Last change: {last.source} {EVENTS.get(last.event, last.event)}, {last.date[:10]}.", ""))
    return lines


def holdings(findings: Findings) -> str:
    """Return the table of compartments."""
    added = {entry.source: entry.date for entry in findings.history if entry.after is not None}
    cards = findings.cards
    rows = [
        [
            name,
            f"{card['n']:,}",
            escape(card["compartment"]),
            f"{card['steps']:,}",
            f"{card['bytes']:,}",
            "none" if card["epsilon"] is None else f"epsilon {card['epsilon']:.3g}, delta {card['delta']:.2g}",
            escape(added.get(source, "-")[:10]),
            f"<code>{escape(card['sha256'][:12])}</code>",
        ]
        for name, (source, card) in zip(named(list(cards)), cards.items(), strict=True)
    ]
    head = ["owner", "images", "prompt trained", "steps", "bytes", "differential privacy", "last fitted", "sha256"]
    images, size = (f"{sum(card[name] for card in cards.values()):,}" for name in ("n", "bytes"))
    return table(head, rows, numbers=(1, 3, 4), total=["all", images, "", "", size, "", "", ""])


def verified(faults: Sequence[str] | None) -> str:
    """Return what `store verify` finds."""
    if faults is None:
        return paragraph("Whether every file is as it was made was not checked: not all of them may be opened.", "soft")
    return "".join(paragraph(text, kind) for text, kind in _files(faults))


def _files(faults: Sequence[str] | None) -> list[tuple[str, str]]:
    if faults is None:
        return []
    if not faults:
        return [("Every file is as it was made (store verify).", "good")]
    return [("Not everything is as it was made (store verify): " + "; ".join(faults), "bad")]


def shares(made: Sampled) -> str:
    """Return the table of what the samples owe to every owner, with bars."""
    found = made.shares
    cut = {source: Interval(one.value, max(one.low, 0.0), min(one.high, 1.0)) for source, one in _credits(made).items()}
    largest = max(max(one.high, found[source].prior) for source, one in cut.items())
    rows = []
    for name, colour, (source, one) in zip(named(list(found)), colours(list(found)), cut.items(), strict=True):
        share = found[source]
        between = f"{one.low:.1%} to {one.high:.1%}"
        drawn = bar(one, share.prior, largest, colour)
        rows.append([name, drawn, f"{one.value:.1%}", between, f"{share.prior:.1%}", f"{share.n:,}"])
    images = f"{sum(share.n for share in found.values()):,}"
    head = ["owner", "", "share of credits", "interval of 95 %", "share of images", "images"]
    return table(head, rows, numbers=(2, 3, 4, 5), total=["all", "", "100.0%", "", "100.0%", images])


def _credits(made: Sampled) -> dict[str, Interval]:
    return {source: share.credit for source, share in made.shares.items()}


def _informative(found: HeldOutCredits) -> tuple[str, str]:
    """Return whether the credits say anything, in words, with its kind."""
    credits = found.credits
    if len(credits.images) == 1:
        return "There is one owner, who is credited with everything.", ""
    said = "The credits say more than nothing" if credits.informative else "The credits say NO more than nothing"
    text = (
        f"{said}: of held-out images, whose owner is known, {credits.accuracy:.1%} are credited most to their own "
        f"({credits.cross_entropy:.3f} nats; knowing nothing is {credits.knowing_nothing:.3f})."
    )
    return text, "good" if credits.informative else "bad"


def unmeasured(sources: Sequence[str], held_out: Mapping[str, int]) -> str:
    """Return why it is not known how held-out images are credited, in words."""
    if not held_out:
        return "Not measured: it takes held-out images of every owner (report --root DIR, of the shards)."
    without = ", ".join(source for source in sources if not held_out.get(source))
    return (
        f"Not measured: there are no held-out images of {without}; leave such owners out of --sources, or hold out "
        "more of their images."
    )


def trust(sources: Sequence[str], findings: Findings, pictures: Mapping[str, str]) -> list[str]:
    """Return how held-out images, whose owner is known, are credited."""
    if (found := findings.credited) is None:
        return [paragraph(unmeasured(sources, findings.held_out), "soft")]
    credits = found.credits
    calibration = (
        f"The credit of the true owner is {credits.mean_credit:.3f} on average. Where the largest credit of an image "
        f"is c, it should be right in a share c of the cases: it is off by {credits.calibration_error:.3f} on average "
        "(the calibration error)."
    )
    rows = []
    for place, (name, n) in enumerate(zip(named(sources), credits.images, strict=True)):
        one = share_interval(round(credits.accuracy_by_source[place] * n), n)
        right = f"{one.value:.1%}"
        rows.append([name, f"{n:,}", right, f"{one.low:.1%} to {one.high:.1%}", f"{credits.matrix[place, place]:.3f}"])
    head = ["owner", "held-out images", "credited most to it", "interval of 95 %", "mean credit"]
    return [
        paragraph(*_informative(found)),
        paragraph(calibration),
        table(head, rows, numbers=(1, 2, 3, 4)),
        figure(pictures["matrix"], "Mean credit of held-out images: rows are true owners, columns credited ones."),
        figure(pictures["reliability"], "How often the largest credit is right, by its size; numbers are images."),
        figure(pictures["by_sigma"], "Weights of held-out images by noise level."),
    ]


def history(entries: Sequence[Entry], chain: str | None) -> str:
    """Return what happened to the store, and whether the ledger's chain holds."""
    rows = [
        [
            escape(entry.date.replace("T", " ").replace("+00:00", " UTC")),
            escape(EVENTS.get(entry.event, entry.event)),
            escape("what was fitted on public images" if entry.source == "public" else entry.source),
            f"<code>{escape((entry.after or entry.before or '')[:12])}</code>",
        ]
        for entry in entries
    ]
    said = paragraph("The ledger's chain of hashes holds.", "good") if chain is None else paragraph(chain, "bad")
    return table(["when", "what", "whose", "sha256"], rows) + said
