"""Freed memory. Oracle: pages that the system has to clear, counted by it."""

import ctypes
import subprocess
import sys

import pytest

from cdm_lightning.allocator import keep_freed_memory

STEPS = """
import resource, sys, torch
from cdm_lightning.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        large = [torch.ones(8 * 2**20) for _ in range(2)]
        del large
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


def pages(how: str) -> int:
    result = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="asks glibc")
def test_tensors_of_the_next_step_find_their_memory_there() -> None:
    assert pages("given back") > 100 * max(pages("kept"), 1)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
