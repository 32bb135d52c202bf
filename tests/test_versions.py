"""What names the code. Oracle: a package with one byte changed, with a file renamed, with other files beside it."""

from pathlib import Path

import pytest

from cdm_lightning import versions
from cdm_lightning.versions import code_sha256


def test_the_code_is_named_by_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "versions.py"))
    (tmp_path / "inner").mkdir()
    a, b = tmp_path / "a.py", tmp_path / "inner" / "b.py"

    def named() -> str:
        code_sha256.cache_clear()
        return code_sha256()

    a.write_text("x = 1\n")
    b.write_text("y = 1\n")
    first = named()
    (tmp_path / "notes.txt").write_text("no module\n")
    assert named() == first
    b.write_text("y = 2\n")
    second = named()
    b.rename(tmp_path / "inner" / "c.py")
    third = named()
    a.write_text("x = 1\ny = 2\n")
    assert len({first, second, third, named()}) == 4
    monkeypatch.undo()
    code_sha256.cache_clear()
    assert len(code_sha256()) == 64
