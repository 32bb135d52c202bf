"""`--json FILE`: where a command also writes what it says, as JSON."""

import json
import os
from pathlib import Path
from typing import Any

from cdm_lightning.errors import BadInput


def check_json(path: str | None) -> None:
    """Raise BadInput unless a file can be made at `path`, before there is anything to write."""
    check_place("json", path)


def check_place(option: str, path: str | None) -> None:
    """Raise BadInput unless a file can be made at the `path` that an option names, or there is none."""
    if path is None:
        return
    place = Path(os.path.realpath(path))  # of a link, where it leads
    if place.is_dir() or not place.parent.is_dir():
        raise BadInput(f"--{option} {path} is no place for a file: name a file in a folder that is there")


def write_json(path: str | None, data: Any) -> None:
    """Write data to `path`, if there is one."""
    if path is not None:
        Path(path).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
