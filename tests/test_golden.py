"""Losses of `debug.yaml`, pinned: what changes what is trained shows here."""

import json
from pathlib import Path

import pytest

from benchmarks.quality_stores import UVIT
from cdm_lightning.cli import main
from tests.noted_losses import noted_losses

GOLDEN = Path(__file__).parent / "golden" / "debug_losses.json"
TRANSFORMER = (*UVIT, "--model.backbone.init_args.patch_size", "2")
SETTINGS = {
    "closed_form-tokens": (*TRANSFORMER, "--model.guide", "closed_form", "--model.compartment", "tokens"),
    "closed_form-lora": (*TRANSFORMER, "--model.guide", "closed_form", "--model.compartment", "lora"),
    "none-full": (*TRANSFORMER, "--model.guide", "none", "--model.compartment", "full"),
    "conv-tokens": ("--model.guide", "closed_form", "--model.compartment", "tokens"),
}


def losses(place: Path, options: tuple[str, ...]) -> dict[str, list[float]]:
    """Return every fifth loss of the backbone's and of one source's 20 steps."""
    quiet = (
        "--metrics.extractor",
        "none",
        "--trainer.logger",
        "false",
        "--trainer.enable_progress_bar",
        "false",
        "--data.sources",
        "[digit4]",
    )
    where = ("--data.root", str(place / "shards"), "--store", str(place / "store"))
    with noted_losses("cpu") as seen:
        assert main(["fit", "--config", "digits_shards.yaml", "--config", "debug.yaml", *where, *options, *quiet]) == 0
    return {source: [round(loss, 6) for loss in steps[::5]] for source, steps in seen.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_are_the_pinned_ones(name: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    found = losses(tmp_path, SETTINGS[name])
    assert found.keys() == expected.keys()
    for source, values in found.items():
        assert values == pytest.approx(expected[source], rel=1e-3), f"to renew {GOLDEN.name}: {json.dumps(found)}"
