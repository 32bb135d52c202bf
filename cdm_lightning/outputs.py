"""What commands write outside a store, and of which sources: so that forgetting a source can list it."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cdm_lightning.errors import UNWRITABLE, BadInput
from cdm_lightning.ledger import append_line, locked, whole_lines

OUTPUTS = "outputs.jsonl"


def check_folder(out: Path) -> None:
    """Raise BadInput if there is a file where a command shall make its folder."""
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise BadInput(f"--out {out} is no folder; name one, or a new one")


def note_output(runs: Path, output: Path, sources: Iterable[str]) -> None:
    """Note that `output`, a file or a folder, is made of these sources; call it before it is written.

    Where the store cannot be written to, nothing is noted, and forgetting cannot list it.

    Args:
        runs: folder of the store's runs.
        output: what is written; its absolute path is kept.
        sources: whose compartments take part.
    """
    line = json.dumps({"path": os.path.abspath(output), "sources": sorted(sources)}, sort_keys=True)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with locked(runs / f"{OUTPUTS}.lock"):
            if line.encode() not in whole_lines(runs / OUTPUTS):
                append_line(runs / OUTPUTS, line)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise


def outputs_of(runs: Path, source: str) -> list[Path]:
    """Return the outputs in which a source took part and that are still there, or may be, sorted."""
    noted = [json.loads(line) for line in whole_lines(runs / OUTPUTS)]
    return sorted({Path(one["path"]) for one in noted if source in one["sources"] and _may_be_there(Path(one["path"]))})


def _may_be_there(path: Path) -> bool:
    """Return whether something is there, also where nobody may look."""
    try:
        return path.exists()
    except OSError:
        return True
