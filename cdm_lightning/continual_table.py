"""The record of a continual experiment as text for a terminal."""

from typing import Any

from cdm_lightning.metrics import score_name
from cdm_lightning.text_tables import aligned

SHOWN = 12  # hex digits of a hash
NOTHING = "-"


def table(record: dict[str, Any]) -> str:
    """Return the matrix with the scores, what is constant and what competes, the averages, and the settings."""
    return "\n".join([_matrix(record), "", _split(record), "", *_averages(record["summary"]), _settings(record)])


def _matrix(record: dict[str, Any]) -> str:
    arrived = _arrived(record)
    distance = "FID" if record["extractor"] == "inception" else "Frechet"
    scored = record["extractor"] != "none"
    head = [f"KID@{record['n']}", f"{distance}@{record['n']}"] if scored else []
    rows = [["after", *arrived, *head, "accuracy"]]
    for row in record["rows"]:
        errors = [_cell(row["heldout_error"].get(source), ".5f") for source in arrived]
        scores = _scores(row["scores"], record) if scored else []
        rows.append([row["event"], *errors, *scores, _cell(_mean(list(row["accuracy"].values())), ".1%")])
    return aligned(rows)


def _arrived(record: dict[str, Any]) -> list[str]:
    return [source for source in record["order"] if source in record["summary"]["compartments_constant"]]


def _scores(scores: dict[str, float] | None, record: dict[str, Any]) -> list[str]:
    if scores is None:
        return [NOTHING] * 2
    names = ("kid", "kid_deviation", "frechet")
    kid, deviation, frechet = (scores[score_name(name, record["n"], record["extractor"])] for name in names)
    return [f"{kid:.4f} ± {deviation:.4f}", f"{frechet:.1f}"]


def _split(record: dict[str, Any]) -> str:
    """Return, by source, what stayed the same in all its rows, and how much the composed error is above its own."""
    rows = [["source", "compartment", "in all rows", "own error", "in all rows", "composed: first", "last", "worst"]]
    constant = record["summary"]["compartments_constant"]
    for source in _arrived(record):
        own = [row["own_error"][source] for row in record["rows"] if source in row["own_error"]]
        composed = [row["heldout_error"][source] for row in record["rows"] if source in row["heldout_error"]]
        hashes = [row["compartments_sha256"][source] for row in record["rows"] if source in row["sources"]]
        over = [100 * (error / alone - 1) for error, alone in zip(composed, own, strict=True)]
        errors = [_cell(own[-1], ".5f"), _same(len(set(own)) == 1)] if own else [NOTHING] * 2
        shares = [f"{over[0]:+.2f} %", f"{over[-1]:+.2f} %", f"{max(over):+.2f} %"] if over else [NOTHING] * 3
        rows.append([source, hashes[-1][:SHOWN], _same(constant[source]), *errors, *shares])
    return aligned(rows)


def _same(constant: bool) -> str:
    return "the same" if constant else "CHANGED"


def _averages(summary: dict[str, Any]) -> list[str]:
    names = {"heldout_error": "composed error", "own_error": "own error", "accuracy": "accuracy"}
    lines = []
    for name, said in names.items():
        forgotten, transfer = (_cell(summary[name][key], "+.5f") for key in ("average_forgetting", "backward_transfer"))
        lines.append(f"{said}: average forgetting {forgotten}, backward transfer {transfer}")
    return lines


def _settings(record: dict[str, Any]) -> str:
    sampled = f"n {record['n']}, {record['sampler']} {record['steps']} steps, {record['strategy']}, "
    return (
        f"{sampled if record['extractor'] != 'none' else ''}seed {record['seed']}, extractor {record['extractor']}, "
        f"held-out images of {record['root']}: errors at sigma {record['heldout_error_sigma']:g} of "
        f"{record['heldout_error_images']} of each source, accuracy of {record['accuracy_images']}"
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
