"""What a page for people is made of: its frame and style, sections, paragraphs, tables, pictures, bars."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cdm_lightning.intervals import Interval
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
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
ul { margin: 1rem 0; padding-left: 1.1rem; max-width: 46rem; }
nav { font-size: .92rem; margin: 1rem 0; } nav a { color: inherit; margin-right: 1.1rem; white-space: nowrap; }
.soft, figcaption, th, small { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th { font-weight: 500; text-align: left; vertical-align: bottom; line-height: 1.3; }
th, td { padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--line); }
td { vertical-align: baseline; white-space: nowrap; }
td small { display: block; font-size: .82em; line-height: 1.2; }
tr.total td { font-weight: 600; border-bottom: 0; }
.number { text-align: right; }
code { font-size: .88em; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; }
figure img { max-width: min(100%, 46rem); background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; max-width: 46rem; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .5em; }
svg.bar { width: clamp(5rem, 24vw, 14rem); height: 1em; vertical-align: middle; }
svg.bar line { stroke: var(--ink); vector-effect: non-scaling-stroke; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 1rem 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  th, td { padding-right: .7rem; } }
@media print { body { max-width: none; padding: 0; } nav { display: none; } h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: .75rem; } }
"""


def document(title: str, body: Sequence[str]) -> str:
    """Return a page as text: one file without scripts, which asks nothing of the network."""
    head = f"<title>{escape(title)}</title><style>{STYLE}</style>"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html>\n<html lang="en"><head>{meta}{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    """Return a part of the page under a title, which `contents` can point to."""
    return "\n".join([f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>', *parts, "</section>"])


def contents(titles: Sequence[str]) -> str:
    """Return links to the sections of these titles."""
    links = (f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in titles)
    return f"<nav>{' '.join(links)}</nav>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def heading(text: str) -> str:
    """Return the title of a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[tuple[str, str]]) -> str:
    """Return a list of lines of plain text, each with its kind: `good`, `bad`, or none."""
    items = (f'<li class="{kind}">{escape(text)}</li>' for text, kind in lines)
    return f"<ul>{''.join(items)}</ul>"


def figure(picture: str, caption: str) -> str:
    """Return a picture, a data URI, with a caption, which also is what a reader hears who cannot see it."""
    said = escape(caption)
    return f'<figure><img src="{escape(picture)}" alt="{said}"><figcaption>{said}</figcaption></figure>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), total: Sequence[str] = ()
) -> str:
    """Return a table of cells that are HTML already; the columns `numbers` are set to the right, `total` is below."""

    def row_of(tag: str, cells: Sequence[str], kind: str = "") -> str:
        kinds = [' class="number"' if column in numbers else "" for column in range(len(cells))]
        return (
            f"<tr{kind}>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"
        )

    body = [row_of("td", row) for row in rows] + ([row_of("td", total, ' class="total"')] if total else [])
    lines = "\n".join(body)
    return f'<div class="wide"><table><thead>{row_of("th", head)}</thead>\n<tbody>{lines}</tbody></table></div>'


def named(sources: Sequence[str]) -> list[str]:
    """Return every source's name behind a square of its colour."""
    return [
        f'<span class="swatch" style="background:{css(colour)}"></span>{escape(source)}'
        for source, colour in zip(sources, colours(sources), strict=True)
    ]


def bar(share: Interval, mark: float, largest: float, colour: tuple[float, float, float]) -> str:
    """Return a bar of a share in [0, 1] with its interval as a line, and a stroke at `mark`; `largest` is all of it."""
    value, low, high, place = (100 * x / largest for x in (share.value, share.low, share.high, mark))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{value:.2f}" height="10" fill="{css(colour)}"/>'
        f'<line x1="{low:.2f}" x2="{high:.2f}" y1="5" y2="5"/>'
        f'<line x1="{place:.2f}" x2="{place:.2f}" y1="0" y2="10" stroke-width="2"/></svg>'
    )


def ranged(value: str, low: str, high: str) -> str:
    """Return a cell of a number above its interval."""
    return f"{escape(value)}<small>{escape(low)} to {escape(high)}</small>"


def css(colour: tuple[float, float, float]) -> str:
    """Return a colour as CSS says it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def definitions(facts: Mapping[str, str]) -> str:
    """Return names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
