"""Faults at file operations: the k-th one of a run fails, as on a full disk or at a kill, and nothing after it runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


class Fault(BaseException):
    """Stands for a kill: no `except Exception` may catch it."""


@contextmanager
def failing_at(number: int) -> Iterator[list[str]]:
    """Let the file operation of this number fail, and every one after it; yields the operations that were begun."""
    begun: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            begun.append(name)
            if len(begun) > number:
                raise Fault(name)
            return original(*arguments, **named)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield begun


def operations_of(action: Callable[[], Any]) -> int:
    """Return how many file operations an action takes."""
    with failing_at(10**6) as begun:
        action()
    return len(begun)
