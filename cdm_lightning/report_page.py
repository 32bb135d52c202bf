"""The page of `report`: one HTML file without scripts, with its pictures inside, to read, print and keep."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from cdm_lightning.attribution import HeldOutCredits
from cdm_lightning.audit_table import HEAD, line, settings_line, verdict_line
from cdm_lightning.ledger import Entry
from cdm_lightning.report import Findings, Share
from cdm_lightning.source_colours import colours

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5f6b73; --line: #d9dee2; --page: #fff; --good: #1a7f4b;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9eb; --soft: #9aa5ad; --line: #3a4248; --page: #15191c;
  --good: #5fce93; --bad: #ff8a80; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, th { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th { font-weight: 500; text-align: left; }
th, td { padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline;
  white-space: nowrap; }
.number { text-align: right; }
code { font-size: .88em; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; }
figure img { max-width: min(100%, 46rem); background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .5em; }
.bar { display: inline-block; height: .8em; border-radius: 2px; min-width: 1px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 1rem 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
BAR = 12  # rem, the longest
EVENTS = {"added": "added", "refitted": "fitted again", "forgotten": "forgotten"}
CREDIT = (
    "The credit of an owner is how probable it is that an image comes from that owner's data, by the owners' closed "
    "forms at low noise, averaged over the sampled images; credits of an image sum to 1. It says whose images a sample "
    "resembles, not that one was copied, and it is no price."
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
        pictures: data URIs, by name: `samples`, `path`, and, if there are held-out images, `matrix` and `by_sigma`.
        audit: the report of the `audit` command, checked.
        facts: what repeats the page, by name.
    """
    sources = list(findings.cards)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">A diffusion model of {len(sources)} owners of data: what it holds, what it makes, and who is '
        "credited.</p>",
        section("What it holds", holdings(findings), verified(findings.faults)),
        section(
            "What it makes",
            figure(pictures["samples"], "Samples of all owners together, and of each alone, from the same noise."),
        ),
        section("Shares", paragraph(CREDIT), shares(findings.sampled.shares)),
        section(
            "On the way from noise to image",
            figure(pictures["path"], "Mean weight of every owner by noise level; at the red line the network begins."),
        ),
        section("How far to trust the credits", *trust(findings.credited, pictures)),
        section("History", history(findings.history, findings.chain)),
        section("Audit", *audited(audit)),
        section("To repeat this page", definitions(facts)),
    ]
    head = f"<title>{escape(title)}</title><style>{STYLE}</style>"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html>\n<html lang="en"><head>{meta}{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    """Return a part of the page under a title."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(picture: str, caption: str) -> str:
    """Return a picture, a data URI, with a caption, which also is what a reader hears who cannot see it."""
    said = escape(caption)
    return f'<figure><img src="{escape(picture)}" alt="{said}"><figcaption>{said}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already; the columns `numbers` are set to the right."""

    def row_of(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if column in numbers else "" for column in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"

    body = "\n".join(row_of("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{row_of("th", head)}</thead>\n<tbody>{body}</tbody></table></div>'


def named(sources: Sequence[str]) -> list[str]:
    """Return every source's name behind a square of its colour."""
    return [
        f'<span class="swatch" style="background:{css(colour)}"></span>{escape(source)}'
        for source, colour in zip(sources, colours(sources), strict=True)
    ]


def css(colour: tuple[float, float, float]) -> str:
    """Return a colour as CSS says it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def holdings(findings: Findings) -> str:
    """Return the table of compartments."""
    added = {entry.source: entry.date for entry in findings.history if entry.after is not None}
    rows = [
        [
            name,
            f"{card['n']:,}",
            escape(card["compartment"]),
            f"{card['steps']:,}",
            f"{card['bytes']:,}",
            escape(added.get(source, "-")[:10]),
            f"<code>{escape(card['sha256'][:12])}</code>",
        ]
        for name, (source, card) in zip(named(list(findings.cards)), findings.cards.items(), strict=True)
    ]
    return table(["owner", "images", "trained", "steps", "bytes", "last fitted", "sha256"], rows, numbers=(1, 3, 4))


def verified(faults: Sequence[str] | None) -> str:
    """Return what `store verify` finds."""
    if faults is None:
        return paragraph("Whether every file is as it was made was not checked: not all of them may be opened.", "soft")
    if not faults:
        return paragraph("Every file is as it was made (store verify).", "good")
    return paragraph("Not everything is as it was made (store verify): " + "; ".join(faults), "bad")


def shares(found: Mapping[str, Share]) -> str:
    """Return the table of what the samples owe to every owner, with bars."""
    rows, largest = [], max(share.credit.value for share in found.values())
    for name, colour, share in zip(named(list(found)), colours(list(found)), found.values(), strict=True):
        width = BAR * share.credit.value / largest
        bar = f'<span class="bar" style="width:{width:.3f}rem;background:{css(colour)}"></span>'
        low, high = max(share.credit.low, 0.0), min(share.credit.high, 1.0)
        rows.append([name, bar, f"{share.credit.value:.3f}", f"{low:.3f} to {high:.3f}", f"{share.prior:.3f}"])
    head = ["owner", "", "share of credits", "interval of 95 %", "share of images"]
    return table(head, rows, numbers=(2, 3, 4))


def trust(found: HeldOutCredits | None, pictures: Mapping[str, str]) -> list[str]:
    """Return how held-out images, whose owner is known, are credited."""
    if found is None:
        said = "Not measured: it takes held-out images of every owner (report --root DIR, of the shards)."
        return [paragraph(said, "soft")]
    credits = found.credits
    informative = "They say more than nothing" if credits.informative else "They say NO more than nothing"
    said = (
        f"Of held-out images, whose owner is known, {credits.accuracy:.1%} are credited most to their own; the credit "
        f"of the true owner is {credits.mean_credit:.3f} on average, the calibration error "
        f"{credits.calibration_error:.3f}. {informative}: {credits.cross_entropy:.3f} nats."
    )
    return [
        paragraph(said),
        figure(pictures["matrix"], "Mean credit of held-out images: rows are true owners, columns credited ones."),
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


def audited(report: Mapping[str, Any] | None) -> list[str]:
    """Return the main table of an audit, and its verdicts."""
    if report is None:
        said = "Not there: python -m cdm_lightning audit ... --json FILE, then report --audit FILE."
        return [paragraph(said, "soft")]
    rows = report["rows"]
    spaces = list(next(iter(rows[0]["groups"].values()))["memorization"])
    head = [*HEAD[:2], *(f"near-copies, {space}" for space in spaces), *HEAD[2:]]
    cells = [line(row["name"], group, found) for row in rows for group, found in row["groups"].items()]
    escaped = [[escape(cell) for cell in row] for row in cells]
    verdicts = [paragraph(verdict_line(row)) for row in rows]
    return [table([escape(cell) for cell in head], escaped), *verdicts, paragraph(settings_line(dict(report)), "soft")]


def definitions(facts: Mapping[str, str]) -> str:
    """Return names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
