"""What `attribute` says of each image: as JSON, as the lines of a CSV file, and as text."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_methods import OF_COALITIONS, Credit, CreditSettings
from cdm_lightning.text_tables import aligned

MOST_NAMED = 3  # sources of an image, in the text
HEAD = ("image", "source", "method", "unit", "value", "low", "high", "credit", "positive_share", "informative")


def image_row(compartments: Compartments, settings: CreditSettings, credit: Credit, k: int) -> dict[str, Any]:
    """Return what the report says of image k of a credit, but for its name.

    `value` and `interval` are shares or nats. `credits` are shares, or None. `positive_shares` and `total`, which is
    v(all) - v(nobody), are of nats only, and so is `permutation_error`, of sampled values.
    """
    value, share = credit.value[:, k], credit.shares[:, k]
    low, high = (_ends(end[:, k], settings) for end in credit.interval())
    sources = list(compartments)
    row: dict[str, Any] = {
        "credited": sources[int(value.argmax())],
        "value": _named(sources, value),
        "interval": {source: [round(a, 6), round(b, 6)] for source, a, b in zip(sources, low, high, strict=True)},
        "credits": _shares(sources, share),
    }
    if settings.method in OF_COALITIONS:
        row["positive_shares"] = _shares(sources, credit.positive[:, k])
    if settings.method == "shapley":
        row["total"] = round(float(value.sum()), 6)
    if credit.permutation_error is not None:
        row["permutation_error"] = _named(sources, credit.permutation_error[:, k])
    if credit.trajectory:
        row["trajectory"] = [[sigma, _named(sources, weight[:, k])] for sigma, weight in credit.trajectory]
    return row


def _ends(end: Tensor, settings: CreditSettings) -> list[float]:
    """Return one end of the intervals; a share's lies in [0, 1]."""
    ends: list[float] = (end if settings.method in OF_COALITIONS else end.clamp(0, 1)).tolist()
    return ends


def _shares(sources: list[str], share: Tensor) -> dict[str, float] | None:
    return None if bool(share.isnan().any()) else _named(sources, share)


def _named(sources: list[str], values: Tensor) -> dict[str, float]:
    return {source: round(value, 6) for source, value in zip(sources, values.tolist(), strict=True)}


def csv_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the head, then a line per image and source; what there is not is empty."""
    yield HEAD
    for row in report["images"]:
        for source in report["sources"]:
            shares = [(row.get(name) or {}).get(source) for name in ("credits", "positive_shares")]
            numbers = (row["value"][source], *row["interval"][source], *shares, report["informative"])
            cells = ("" if number is None else str(number).lower() for number in numbers)
            yield (row["image"], source, report["method"], report["unit"], *cells)


def said(report: dict[str, Any]) -> str:
    """Return the report as text: a line per image, what the numbers are, and whether they can be believed."""
    head = ["image", "nats that a source adds" if report["unit"] == "nats" else "credits", "nearest training image"]
    rows = [[row["image"], _largest(row), _nearest(row)] for row in report["images"]]
    columns = 3 if any(row[2] for row in rows) else 2
    return "\n".join([aligned([row[:columns] for row in [head, *rows]]), "", _settings(report), _trust(report)])


def _largest(row: dict[str, Any]) -> str:
    """Return the largest values with the ends of their intervals."""
    largest = sorted(row["value"], key=lambda source: -row["value"][source])[:MOST_NAMED]
    return ", ".join(
        "{} {:.3f} [{:.3f}, {:.3f}]".format(source, row["value"][source], *row["interval"][source])
        for source in largest
    )


def _nearest(row: dict[str, Any]) -> str:
    if "nearest" not in row:
        return ""
    first = row["nearest"]["pixels"][0]
    return f"{first['key']} of {row['credited']}, {first['distance']:.1f} grey levels"


def _settings(report: dict[str, Any]) -> str:
    utility = f" by {report['utility']}" if report["unit"] == "nats" else ""
    level = "levels of the sampler" if report["method"] == "weights" else f"sigma {report['sigma']:.3g}"
    return (
        f"{report['method']}{utility}, {report['draws']} noise draws, {level}, seed {report['seed']}, "
        f"{report['network_evaluations_per_image']:g} network evaluations per image"
    )


def _trust(report: dict[str, Any]) -> str:
    if len(report["sources"]) == 1:
        return "there is one source, which is credited with everything"
    if report["informative"] is None:
        return _unknown(report["without_heldout"])
    nats, most = report["heldout"]["cross_entropy"], report["heldout"]["knowing_nothing"]
    verdict = "informative" if report["informative"] else "not informative: do not rely on these credits"
    return f"held-out images: {nats:.3f} nats, knowing nothing is {most:.3f}; {verdict}"


def _unknown(without: list[str]) -> str:
    """Return why it is not known whether credits can be believed: sources without held-out images, or no shards."""
    if not without:
        return "informative: not known, for want of held-out images of every source (--root DIR)"
    return (
        f"informative: not known, as there are no held-out images of {', '.join(without)}; leave such sources out of "
        "--sources, or hold out more of their images"
    )
