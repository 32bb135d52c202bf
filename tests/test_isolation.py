"""The invariant, by command line: what depends on a source lies in its compartment, and depends on no other source."""

import hashlib
import shutil
from pathlib import Path

import pytest

from datamodules.encoding import encode_sources
from datamodules.manifest import read_manifest, usable
from datamodules.origins import read_origin
from datamodules.plan import Plan
from datamodules.records import Collection
from datamodules.writer import write_source
from tests.conftest import Fit

TRAINED = ("--model.tokens", "2", "--model.lora_rank", "2", "--trainer.max_steps", "200")
KINDS = {"none": (), **{kind: ("--model.compartment", kind, *TRAINED) for kind in ("tokens", "lora", "head", "full")}}
KINDS["labelled"] = ("--model.class_labels", "true", *KINDS["tokens"], "--trainer.max_steps", "30")


def contents(store: Path, source: str) -> dict[str, str]:
    """Return the sha256 of every file of a compartment."""
    folder = store / "compartments" / source
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def backbone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the shared store's backbone and no compartment."""
    path = tmp_path_factory.mktemp("backbone") / "store"
    path.mkdir()
    for name in ("store.json", "backbone.safetensors"):
        shutil.copy(store / name, path / name)
    return path


def copy_of(backbone: Path, place: Path) -> Path:
    return Path(shutil.copytree(backbone, place))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_compartments_do_not_depend_on_their_company(
    kind: tuple[str, ...], fit: Fit, backbone: Path, tmp_path: Path
) -> None:
    all_three, two, grown = (copy_of(backbone, tmp_path / name) for name in ("all_three", "two", "grown"))
    assert fit(all_three, "[digit0, digit1, digit2]", *kind) == 0
    assert fit(two, "[digit0, digit2]", *kind) == 0
    assert fit(grown, "[digit0]", *kind) == 0
    assert fit(grown, "[digit2]", *kind) == 0
    for source in ("digit0", "digit2"):
        assert contents(all_three, source) == contents(two, source) == contents(grown, source)
    assert (
        len({contents(all_three, source)["compartment.safetensors"] for source in ("digit0", "digit1", "digit2")}) == 3
    )


def test_the_whole_store_is_repeatable(store: Path, fit: Fit, tmp_path: Path) -> None:
    assert fit(tmp_path / "again", "[digit2]") == 0
    assert (tmp_path / "again" / "backbone.safetensors").read_bytes() == (store / "backbone.safetensors").read_bytes()
    assert contents(tmp_path / "again", "digit2") == contents(store, "digit2")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_excluded_sample_was_never_there(
    kind: tuple[str, ...], fit: Fit, backbone: Path, workplace: Path, tmp_path: Path
) -> None:
    source, manifest = "digit1", read_manifest(workplace / "shards" / "digit1")
    key = sorted(usable(manifest, "train", frozenset()))[5]
    (tmp_path / "excluded.txt").write_text(key + "\n")
    excluded, never = copy_of(backbone, tmp_path / "excluded"), copy_of(backbone, tmp_path / "never")
    assert fit(excluded, f"[{source}]", *kind, "--data.exclude", str(tmp_path / "excluded.txt")) == 0
    write_digits_without(key, source, tmp_path / "shards")
    assert fit(never, f"[{source}]", *kind, "--data.root", str(tmp_path / "shards")) == 0
    assert contents(excluded, source) == contents(never, source)
    assert contents(excluded, source) != contents(workplace / "store", source)


def write_digits_without(key: str, source: str, root: Path) -> None:
    """Write the tars of a source as if one of its images had never existed."""
    plan = Plan("digits", None, "class", 8, 1, [], 0.4, 0.1, 2)
    digits = read_origin("digits", None)
    others = Collection([record for record in digits.records if record.key != key], digits.classes)
    write_source(root / source, encode_sources(others, plan)[source], plan)
