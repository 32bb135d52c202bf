"""A small real store that several tests share: handwritten digits, a tiny backbone, a few steps."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cdm_lightning import private_fitting
from cdm_lightning.cli import main
from tests.made_shards import save_images, write

TINY = """
data:
  from: digits
  public_fraction: 0.4
  heldout_fraction: 0.1
  shards_per_source: 2
  image_size: 8
  channels: 1
  batch_size: 16
model:
  backbone:
    class_path: cdm_lightning.backbone.UViT
    init_args: {patch_size: 4, width: 16, depth: 3, heads: 2}
  backbone_steps: 40
  rank: 16
metrics: {extractor: none}
trainer:
  enable_progress_bar: false
  logger: false
  enable_checkpointing: false
"""

Fit = Callable[..., int]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Bytes are compared on one thread count."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def one_code() -> Iterator[None]:
    """The noise of private sources depends on the package's code: with this it is the same after every change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_fitting, "code_sha256", lambda: "the code of the tests")
        yield


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny configuration and room for shards."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="session")
def fit(workplace: Path) -> Fit:
    """Return a function that fits sources into a store by command line and returns the exit code."""

    def run(store: Path, sources: str, *options: str) -> int:
        where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards")]
        return main(["fit", *where, "--store", str(store), "--data.sources", sources, *options])

    return run


@pytest.fixture(scope="session")
def store(workplace: Path, fit: Fit) -> Path:
    """Return a store with the compartments of three digits and a backbone of 40 steps; read it, do not change it."""
    path = workplace / "store"
    assert fit(path, "[digit0, digit1, digit2]") == 0
    return path


@pytest.fixture(scope="session")
def parts(workplace: Path, fit: Fit) -> Path:
    """Return a store of two owners who both have all ten digits, with class labels; read it, do not change it."""
    options = ("--data.root", str(workplace / "parts"), "--data.split", "random:2", "--model.class_labels", "true")
    assert fit(workplace / "parts_store", "all", *options) == 0
    return workplace / "parts_store"


@pytest.fixture(scope="session")
def alice_and_bob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root of the shards of two sources and `public`; read it, do not change it."""
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "root", save_images(folder / "images"))
    return folder / "root"


@pytest.fixture
def alice(alice_and_bob: Path, tmp_path: Path) -> Path:
    """Return a copy of the shards of the source alice, to be damaged."""
    return Path(shutil.copytree(alice_and_bob / "alice", tmp_path / "root" / "alice"))
