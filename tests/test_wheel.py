"""An installed wheel, outside the checkout, is complete and finds its configurations."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("cdm_lightning", "datamodules", "callbacks", "configs")


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing is left in the checkout."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    run("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), ".", cwd=copy)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_config(wheel: Path) -> None:
    files = [path for name in PARTS for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".yaml")]
    held = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    assert {path.name for path in files} <= held


def test_an_installed_wheel_finds_its_configs(wheel: Path, tmp_path: Path) -> None:
    """Oracle: the configuration as the checkout prints it."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=elsewhere)
    where = run("-c", "import cdm_lightning; print(cdm_lightning.__file__)", cwd=elsewhere, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    command = ("-m", "cdm_lightning", "fit", "--config", "fashion_shards.yaml", "--print_config")
    assert run(*command, cwd=elsewhere, PYTHONPATH=str(site)) == run(*command, cwd=ROOT)
