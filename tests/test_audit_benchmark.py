"""The benchmark of audits. Oracle: the results that were there before."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import audit

RESULTS = Path(audit.__file__).with_name("results")


def test_another_size_leaves_those_that_were_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(RESULTS / "audit.json", tmp_path / "audit.json")
    before = json.loads((tmp_path / "audit.json").read_text())["by_size"]
    (tmp_path / audit.PICTURE).write_bytes(b"a picture")

    def measured(_: argparse.Namespace, n: int) -> dict[str, Any]:
        assert n == 50
        return before["100"] | {"store": "here", "root": "there", "exclude": None}

    monkeypatch.setattr(audit, "measured", measured)
    monkeypatch.setattr(audit, "RESULTS", tmp_path)
    places = [word for name in ("backbone", "classes", "union") for word in (f"--{name}", "not read")]
    words = ["audit", *places, "--out", str(tmp_path), "--name", "audit", "--sizes", "50"]
    monkeypatch.setattr(sys, "argv", words)
    audit.main()
    after = json.loads((tmp_path / "audit.json").read_text())["by_size"]
    assert after == before | {"50": before["100"]}
    assert (tmp_path / "audit_50.png").exists()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert {line.split("|")[1].strip() for line in lines} == set(after)
