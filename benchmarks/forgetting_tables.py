"""The tables of `benchmarks.forgetting`: what is learned again and what it costs; the samples before and after."""

from collections.abc import Mapping
from typing import Any

from cdm_lightning.text_tables import markdown


def summary(result: Mapping[str, Any]) -> str:
    """Return the two tables of the README."""
    forms, near = result["closed_forms"], result["convergence"]
    mono = near["monolith"]
    rows = [["learned again", "steps", "images seen", "/ monolith", "seconds of CPU", "/ monolith"]]
    own, share = forms["seconds"]["cpu"], forms["seconds"]["cpu"] / mono["seconds"]
    rows.append(["closed forms of the part, whole command", "0", "0", "0", f"{own:.0f}", f"{share:.3f}"])
    for name in ("equal_passes", "whole_curve"):
        part, shares = near[name]["part"], [f"{near[name][f'{what}_ratio']:.3f}" for what in ("images", "seconds")]
        what, seen = f"trained part, of {part['budget']} steps", f"{part['images']:,}"
        rows.append([what, str(part["step"]), seen, shares[0], f"{part['seconds']:.0f}", shares[1]])
    what, seen = f"trained monolith, of {mono['budget']} steps", f"{mono['images']:,}"
    rows.append([what, str(mono["step"]), seen, "1", f"{mono['seconds']:.0f}", "1"])
    head = ["samples of the eight parts", "KID", "minus that before", "the same pictures"]
    kid_rows = [
        [name, _interval(row["kid"]), _interval(row["more_than_before"]), str(row["same_pictures_as_before"])]
        for name, row in forms["kid"]["rows"].items()
    ]
    return f"{markdown(rows)}\n\n{markdown([head, *kid_rows])}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
