"""Versions of what computed a number, so that it can be repeated."""

import platform
from importlib.metadata import version


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package by its name, and of Python."""
    return {name: version(name) for name in packages} | {"python": platform.python_version()}
