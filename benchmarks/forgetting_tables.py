"""The tables of `benchmarks.forgetting`: what is learned again and what it costs; the samples before and after."""

from collections.abc import Mapping
from typing import Any

from cdm_lightning.text_tables import markdown


def summary(result: Mapping[str, Any]) -> str:
    """Return the two tables of the README."""
    forms = result["closed_forms"]
    own, cheapest = forms["seconds"]["cpu"], min(row["monolith"]["seconds"] for row in result["convergence"])
    rows = [
        ["learned again", "steps", "images seen", "/ monolith", "seconds of CPU", "/ monolith"],
        ["closed forms of the part, whole command", "0", "0", "0", f"{own:.0f}", f"{own / cheapest:.3f}"],
    ]
    for row in result["convergence"]:
        for name in ("part", "monolith"):
            near, shares = row[name], (row["images_ratio"], row["seconds_ratio"]) if name == "part" else (1, 1)
            images, seconds = (f"{share:.3f}" if name == "part" else "1" for share in shares)
            what, seen = f"trained {name}, of {near['budget']} steps", f"{near['images']:,}"
            rows.append([what, str(near["step"]), seen, images, f"{near['seconds']:.0f}", seconds])
    head = ["samples of the eight parts", "KID", "minus that before", "the same pictures"]
    kid_rows = [
        [name, _interval(row["kid"]), _interval(row["more_than_before"]), str(row["same_pictures_as_before"])]
        for name, row in forms["kid"]["rows"].items()
    ]
    return f"{markdown(rows)}\n\n{markdown([head, *kid_rows])}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
