"""Error types. What a user did is told in one sentence; what we did wrong keeps its traceback."""

import difflib
import errno
from collections.abc import Iterable

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)  # of an OSError: there is no permission to write


class BadInput(Exception):
    """Input that cannot be used. The text says what, where, what was expected and what to do; exit code 2."""


class Interrupted(Exception):
    """A signal has ended a training: `signal` is its number. What is finished is stored."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


class UnknownSource(BadInput):
    """A source that does not exist where it was looked for."""

    def __init__(self, source: str, known: Iterable[str], where: str) -> None:
        known = sorted(known)
        listing = ", ".join(known) if known else "no source at all"
        super().__init__(f"unknown source '{source}': {where} has {listing}{did_you_mean(source, known)}")


class ShardError(BadInput):
    """A shard or manifest that is missing, cut, changed or not what its manifest says."""


class StoreError(BadInput):
    """A store or compartment that is missing, damaged or belongs to another backbone."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
