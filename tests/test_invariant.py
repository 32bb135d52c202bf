"""`benchmarks/invariant.py` in short. Oracle: bytes of stores that never had what was forgotten."""

from pathlib import Path

import pytest

from benchmarks import invariant
from cdm_lightning.cli import main


def test_what_was_forgotten_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*words: object) -> None:
        assert main([*map(str, words)]) == 0

    monkeypatch.setattr(invariant, "command", command)
    found = invariant.compare(tmp_path, ["tokens"], steps=3, backbone_steps=3)
    assert isinstance(found["same_bytes"], dict)
    assert len(found["same_bytes"]["tokens"]) == 6
    assert set(found["same_bytes"]["tokens"].values()) == {True}
