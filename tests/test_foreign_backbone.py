"""Any other backbone by `class_path`: fitted, stored and sampled by the same commands, if its package is allowed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdm_lightning.cli import main
from tests.conftest import Fit

FOREIGN = """
model:
  backbone:
    class_path: tests.conv_backbone.ConvNet
    init_args: {width: 6}
  backbone_steps: 5
"""


@pytest.fixture
def config(tmp_path: Path, workplace: Path) -> Path:
    """Return the tiny configuration with another backbone."""
    own = (workplace / "tiny.yaml").read_text().split("model:")
    path = tmp_path / "foreign.yaml"
    path.write_text(own[0] + FOREIGN.lstrip() + own[1][own[1].index("  rank:") :])
    return path


def run(config: Path, workplace: Path, store: Path) -> int:
    where = ["--data.root", str(workplace / "shards"), "--store", str(store), "--data.sources", "[digit0, digit1]"]
    tokens = ["--model.compartment", "tokens", "--model.tokens", "2", "--trainer.max_steps", "3"]
    return main(["fit", "--config", str(config), *where, *tokens])


def test_an_allowed_package_goes_all_the_way(
    store: Path, fit: Fit, config: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDM_ALLOW", "tests")
    assert run(config, workplace, tmp_path / "store") == 0
    sample = ["sample", "--store", str(tmp_path / "store"), "--sources", "all", "--n", "2", "--steps", "3"]
    assert main([*sample, "--out", str(tmp_path / "out")]) == 0
    credits = json.loads((tmp_path / "out" / "credits.json").read_text())
    assert credits["sources"] == ["digit0", "digit1"]
    monkeypatch.delenv("CDM_ALLOW")
    assert main([*sample, "--out", str(tmp_path / "refused")]) == 2
    assert not (tmp_path / "refused").exists()


def test_another_package_is_refused(config: Path, tmp_path: Path) -> None:
    """In a process of its own: jsonargparse keeps what was allowed once."""
    command = [
        sys.executable,
        "-m",
        "cdm_lightning",
        "fit",
        "--config",
        str(config),
        "--store",
        str(tmp_path / "store"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "'tests.conv_backbone.ConvNet' is outside the allowed packages; if you trust it, set CDM_ALLOW" in line
    assert not (tmp_path / "store").exists()
