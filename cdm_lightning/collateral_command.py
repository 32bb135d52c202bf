"""The command line of `collateral`: a store before forgetting and now, and what became of the other sources."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdm_lightning.collateral import collateral, picture, settings_said
from cdm_lightning.errors import BadInput
from cdm_lightning.generation import Settings
from cdm_lightning.images import encode_png
from cdm_lightning.outputs import note_output
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.store import Store
from cdm_lightning.text_tables import aligned
from cdm_lightning.versions import versions

SAMPLED_WITH = ("n", "seed", "strategy", "sampler", "steps", "sigma_switch", "batch_size", "device")
IMAGES = 16
PACKAGES = ("torch", "numpy")


def collateral_parser() -> Parser:
    """Return the parser of `collateral`."""
    parser = new_parser("collateral", "Measure what forgetting did to the other sources, and to the composed model.")
    parser.add_argument("--before", type=str, required=True, help="a copy of the store, made before the forgetting")
    parser.add_argument("--store", type=str, required=True, help="the store now")
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SAMPLED_WITH))
    parser.set_defaults({"n": IMAGES})
    parser.add_argument(
        "--picture",
        type=str | None,
        default=None,
        help="PNG file: before, now and difference, three rows for each source and three for the composed model",
    )
    parser.add_argument("--json", type=str | None, default=None, help="also write all numbers to this file")
    return parser


def compare(config: Any) -> dict[str, Any]:
    """Compare what a parsed command line names, draw the picture if it asks for one, and return the report.

    Raises:
        BadInput: the stores or a setting cannot be used.
    """
    before, after = Store.open(Path(config.before)), Store.open(Path(config.store))
    settings = Settings(**{name: config[name] for name in SAMPLED_WITH})
    found = collateral(before, after, settings)
    if config.picture is not None:
        note_output(after.runs, Path(config.picture), before.sources())
        Path(config.picture).write_bytes(encode_png(picture(found)))
    return {
        "before": str(before.path),
        "store": str(after.path),
        "sources": before.sources(),
        "backbone_sha256": after.info.backbone_sha256,
        "compared": settings_said(settings),
        "versions": versions(*PACKAGES),
        **found.as_json(),
    }


def verdict(report: dict[str, Any]) -> str:
    """Return a report as text.

    Raises:
        BadInput: a remaining source alone is not what it was.
    """
    text = "\n".join([*_heading(report), _table(report), *_composed(report), _compared(report)])
    changed = [row["source"] for row in report["alone"] if not row["holds"]]
    if changed:
        raise BadInput(f"forgetting should not have changed {', '.join(changed)}, but they are not the same:\n{text}")
    same = sum(not row["samples_forgotten"] for row in report["alone"])
    return f"{text}\nverdict: each of the {same} other sources alone is what it was, exactly"


def _heading(report: dict[str, Any]) -> Iterator[str]:
    fitted_again = [row["source"] for row in report["alone"] if row["samples_forgotten"]]
    yield f"before: {report['before']}; now: {report['store']}"
    yield f"gone: {', '.join(report['gone']) or 'no source'}"
    if fitted_again:
        yield f"fitted again without some of their samples: {', '.join(fitted_again)}"


def _table(report: dict[str, Any]) -> str:
    rows = [("source alone", "compartment", "largest difference", "rms difference", "")]
    for row in report["alone"]:
        compartment = "same bytes" if row["same_bytes"] else "other bytes"
        numbers = f"{row['largest']:.4g}", f"{row['rms']:.4g}"
        judged = "fitted again" if row["samples_forgotten"] else ("ok" if row["holds"] else "NO")
        rows.append((row["source"], compartment, *numbers, judged))
    return aligned(rows)


def _composed(report: dict[str, Any]) -> Iterator[str]:
    found, n = report["composed"], report["compared"]["n"]
    others = "" if found["rms"] is None else f"; the others differ by {found['rms']:.1f} (rms)"
    yield f"composed model: {found['same']} of {n} pictures are the same{others}"
    if found["drawn"] is not None:
        pairs = [(old, new) for old, new in found["drawn"] if old != new]
        lost = sum(old in report["gone"] for old, _ in pairs)
        yield (
            f"  drawn from the same source: {n - len(pairs)} of {n}; from one that is gone, and now from another: "
            f"{lost}; from another one that is still there: {len(pairs) - lost}"
        )


def _compared(report: dict[str, Any]) -> str:
    how = report["compared"]
    forgotten = report["gone"] or any(row["samples_forgotten"] for row in report["alone"])
    switch = "" if how["sigma_switch"] is None else f", sigma_switch {how['sigma_switch']}"
    return (
        f"compared: {how['n']} images of each source alone and of the composed model ({how['strategy']}{switch}), the "
        f"same noise before and now: seed {how['seed']}, {how['sampler']} {how['steps']} steps, {how['device']}; "
        "differences in grey levels of 0..255"
        + (f"\n{report['before']} still holds what was forgotten: delete it afterwards" if forgotten else "")
    )
