"""What a fit shows: figures, scalars and the progress bar, read back from the event files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.figures import image_rows, matrix
from cdm_lightning.phase import Phase
from tests.conftest import Fit


@pytest.fixture(scope="module")
def shown(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs of a fit of three digits with its logger on; one has a prompt."""
    store = tmp_path_factory.mktemp("shown") / "store"
    logged = (
        "--trainer.logger",
        "true",
        "--trainer.enable_checkpointing",
        "true",
        "--model.backbone_steps",
        "20",
        "--trainer.log_every_n_steps",
        "5",
    )
    assert fit(store, "[digit0, digit1]", *logged) == 0
    assert fit(store, "[digit2]", *logged, "--model.compartment", "tokens", "--trainer.max_steps", "10") == 0
    return store / "runs"


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize(("folder", "steps"), [("backbone", [4, 9, 14, 19]), ("sources/digit2", [4, 9])])
def test_losses_are_logged_by_phase(shown: Path, folder: str, steps: list[int]) -> None:
    losses = events(shown / folder).Scalars("loss")
    assert [event.step for event in losses] == steps
    assert all(0 < event.value < 100 for event in losses)


def test_composed_figures_have_the_number_of_sources_as_step(shown: Path) -> None:
    composed = events(shown / "composed")
    for tag in ("samples", "attribution/matrix", "attribution/by_sigma", "attribution/by_source"):
        assert [event.step for event in composed.Images(tag)] == [1, 2, 3]
    assert [event.step for event in composed.Scalars("attribution/cross_entropy")] == [1, 2, 3]
    one, *_ = composed.Scalars("attribution/accuracy")
    assert one.value == 1.0, "a single source is always right"


def test_a_phase_config_names_its_own_source_only(shown: Path) -> None:
    assert "sources: []" in (shown / "backbone" / "config.yaml").read_text()
    own = (shown / "sources" / "digit2" / "config.yaml").read_text()
    assert "- digit2" in own
    assert "digit0" not in own
    assert "digit1" not in own


def test_rows_of_images_show_the_grey_levels_they_were_given(tmp_path: Path) -> None:
    rows = {"black": torch.full((4, 1, 8, 8), -1.0), "white": torch.full((4, 1, 8, 8), 1.0)}
    path = tmp_path / "rows.png"
    image_rows(rows, "two rows", ["white"]).savefig(path)
    pixels = np.asarray(Image.open(path).convert("L"))
    middle = pixels[:, pixels.shape[1] * 2 // 3]
    assert (middle == 0).sum() > 30


def test_matrix_writes_its_numbers() -> None:
    figure = matrix(torch.tensor([[0.75, 0.25], [0.1, 0.9]]), ["cat", "dog"], "title")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.75", "0.25", "0.10", "0.90"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("credited source", "true source")


@pytest.mark.parametrize(
    ("phase", "title"),
    [
        (Phase("backbone", "public", 1, 11), "[1/11] backbone on public"),
        (Phase("source", "horse", 3, 11), "[3/11] source horse"),
        (Phase("composed", "horse", 3, 11), "[3/11] composed model"),
    ],
)
def test_a_phase_is_named_by_source_and_position(phase: Phase, title: str) -> None:
    assert phase.title == title
