"""`benchmarks/invariant.py` in short. Oracle: bytes of stores that never had what was forgotten."""

from pathlib import Path

import pytest

from benchmarks import invariant
from cdm_lightning.cli import main


def test_what_was_forgotten_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*words: object) -> None:
        assert main([*map(str, words)]) == 0

    monkeypatch.setattr(invariant, "command", command)
    key = invariant.prepare(tmp_path, backbone_steps=3)
    found = invariant.compare(tmp_path, key, "tokens", steps=3, backbone_steps=3)["same_bytes"]
    assert isinstance(found, dict)
    assert len(found) == 6
    assert set(found.values()) == {True}
