"""Versions of what computed a number, so that it can be repeated."""

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package by its name, and of Python."""
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


@cache
def code_sha256() -> str:
    """Return the sha256 of this package's modules, names and contents: any change of the code changes it."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
