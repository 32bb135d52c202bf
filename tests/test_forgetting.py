"""The forgetting matrix. Oracle: the average by hand, and the file of a continual run."""

import json
import shutil
from pathlib import Path

import pytest

from callbacks.forgetting import average_forgetting
from tests.conftest import Fit


def test_average_forgetting_by_hand() -> None:
    rows = [{"a": 0.10}, {"a": 0.11, "b": 0.20}, {"a": 0.12, "b": 0.19, "c": 0.30}]
    assert average_forgetting(rows) == pytest.approx(((0.12 / 0.10 - 1) + (0.19 / 0.20 - 1)) / 2)
    assert average_forgetting(rows[:1]) == 0


def test_a_continual_run_extends_the_matrix(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("store.json", "backbone.safetensors"):
        shutil.copy(store / name, copy / name)
    for sources in ("[digit0, digit1]", "[digit2]"):
        assert fit(copy, sources, "--trainer.logger", "true", "--metrics.extractor", "none") == 0
    rows = json.loads((copy / "runs" / "composed" / "forgetting.json").read_text())
    assert [sorted(row) for row in rows] == [["digit0"], ["digit0", "digit1"], ["digit0", "digit1", "digit2"]]
    assert all(0 < error < 1 for row in rows for error in row.values())
