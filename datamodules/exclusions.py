"""The list of samples that are not used."""

from pathlib import Path

from cdm_lightning.errors import BadInput
from datamodules.names import is_key


def read_keys(path: Path) -> frozenset[str]:
    """Return the keys that a text file lists, one a line.

    Raises:
        BadInput: the file is missing or no text, or a line is no key.
    """
    if not path.is_file():
        raise BadInput(f"exclude: '{path}' is no file; it must list keys, one a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"exclude: '{path}' cannot be read ({error}); it must list keys, one a line, in UTF-8"
        ) from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    for key in sorted(keys):
        if not is_key(key):
            raise BadInput(f"exclude: {key!r} in '{path}' is no key: keys have only letters, digits, _ and -")
    return keys
