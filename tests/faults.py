"""Faults at file operations: the k-th one of a run fails, as on a full disk or at a kill, and nothing after it runs."""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


class Fault(BaseException):
    """Stands for a kill: no `except Exception` may catch it."""


def lose_power(*_: Any) -> None:
    """Stands for a function that does not come to its end."""
    raise RuntimeError("lost power")


@contextmanager
def failing_at(
    number: int, opened: bool = False, error: Callable[[str], BaseException | None] = Fault
) -> Iterator[list[str]]:
    """Let the file operation of this number fail, and every one after it; yields the operations that were begun.

    Args:
        number: of the operation, from 0.
        opened: also count a file that is opened to be written; if that is the one that fails, the file is left empty.
            The process has another number than who comes after it, as with a real kill.
        error: what an operation of this name fails with; None lets it be done.
    """
    begun: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            begun.append(name)
            if len(begun) > number and (failure := error(name)) is not None:
                raise failure
            return original(*arguments, **named)

        return operation

    def watched_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return original_open(file, mode, *arguments, **named)
        begun.append("open")
        if len(begun) > number and (failure := error("open")) is not None:
            if len(begun) == number + 1:
                original_open(file, mode, *arguments, **named).close()
            raise failure
        return original_open(file, mode, *arguments, **named)

    original_open, process = builtins.open, os.getpid()
    with pytest.MonkeyPatch.context() as patch:
        if opened:
            patch.setattr(builtins, "open", watched_open)
            patch.setattr(io, "open", watched_open)
            patch.setattr(os, "getpid", lambda: process + 10**6)
        for name in OPERATIONS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield begun


def operations_of(action: Callable[[], Any], opened: bool = False) -> int:
    """Return how many file operations an action takes."""
    with failing_at(10**6, opened) as begun:
        action()
    return len(begun)
