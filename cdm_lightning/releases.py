"""What each private source of a store has released so far. It outlives the compartment: what is out stays out.

STORE/releases.jsonl has a line per release. It is written before the compartment is, so an interrupted fit may count
one too many, never one too few.
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

from cdm_lightning.errors import StoreError
from cdm_lightning.ledger import append_line, locked, whole_lines

RELEASES = "releases.jsonl"


def note_release(store: Path, source: str, mu: float) -> None:
    """Add a release of a source to those of a store."""
    line = {"source": source, "mu": mu, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    with locked(store / "ledger.lock"):
        append_line(store / RELEASES, json.dumps(line, sort_keys=True))


def released(store: Path, source: str) -> list[float]:
    """Return the mu of every release of a source, oldest first.

    Raises:
        StoreError: a line is no release; names it.
    """
    found = []
    for number, line in enumerate(whole_lines(store / RELEASES), start=1):
        try:
            entry = json.loads(line)
            name, mu = str(entry["source"]), float(entry["mu"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{store / RELEASES}, line {number}: this is no release; compare it with a copy"
            ) from error
        if not (math.isfinite(mu) and mu > 0):
            raise StoreError(f"{store / RELEASES}, line {number}: its mu is {mu}; compare it with a copy")
        if name == source:
            found.append(mu)
    return found
