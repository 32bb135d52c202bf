"""What is measured while a prompt is trained, and that measuring changes nothing. Oracles: the stored bytes without it,
the composed validation that follows, the noise law, and the tags that are really there.
"""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from callbacks.training_monitor import QUARTILES, norm
from cdm_lightning.denoiser import SIGMA_MIN
from cdm_lightning.loss import draw_sigma, noise_quartile
from cdm_lightning.seeding import generator
from tests.conftest import Fit
from tests.test_callbacks import events
from tests.test_resume import Killed, compartment, kill_at, only_backbone

STEPS, BATCH, SWITCH = 10, 16, 1.0
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", str(STEPS))
MEASURED = ("--metrics.extractor", "effnet-lite0", "--metrics.n", "4", "--metrics.every", "5")
LOGGED = ("--trainer.logger", "true", "--trainer.log_every_n_steps", "1")


@pytest.fixture(scope="module")
def measured(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store whose prompt was measured every five steps, with the logger on."""
    place = only_backbone(store, tmp_path_factory.mktemp("measured") / "store")
    assert fit(place, "[digit0]", *TOKENS, *MEASURED, *LOGGED) == 0
    return place


@pytest.fixture(scope="module")
def in_training(measured: Path) -> EventAccumulator:
    return events(measured / "runs" / "sources" / "digit0")


@pytest.fixture(scope="module")
def unmeasured(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """Return the events of a prompt's training that nothing measured on the way."""
    place = only_backbone(store, tmp_path_factory.mktemp("unmeasured") / "store")
    assert fit(place, "[digit0]", *TOKENS, *MEASURED, "--metrics.every", "0", *LOGGED) == 0
    return events(place / "runs" / "sources" / "digit0")


@pytest.fixture(scope="module")
def composed(measured: Path) -> EventAccumulator:
    return events(measured / "runs" / "composed")


def test_measuring_changes_no_byte(measured: Path, store: Path, fit: Fit, tmp_path: Path) -> None:
    plain = only_backbone(store, tmp_path / "plain")
    assert fit(plain, "[digit0]", *TOKENS) == 0
    assert compartment(plain, "digit0") == compartment(measured, "digit0")
    checked = only_backbone(store, tmp_path / "checked")
    assert fit(checked, "[digit0]", *TOKENS, *MEASURED, *LOGGED, "--trainer.num_sanity_val_steps", "2") == 0
    assert compartment(checked, "digit0") == compartment(measured, "digit0")


def test_a_measured_training_goes_on_after_a_kill(
    measured: Path, store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = only_backbone(store, tmp_path / "killed")
    options = (*TOKENS, *MEASURED, "--trainer.enable_checkpointing", "true", "--checkpoint_every", "5")
    with monkeypatch.context() as patch:
        kill_at(7, patch)
        with pytest.raises(Killed):
            fit(place, "[digit0]", *options)
    assert fit(place, "[digit0]", *options) == 0
    assert compartment(place, "digit0") == compartment(measured, "digit0")


@pytest.mark.parametrize("metric", ["kid", "kid_deviation", "frechet", "precision", "recall"])
def test_the_last_measurement_is_that_of_the_finished_source(
    metric: str, in_training: EventAccumulator, composed: EventAccumulator
) -> None:
    """Both sample the running average, from the same noise."""
    name = f"{metric}@4_effnet-lite0"
    first, last = in_training.Scalars(f"in_training/{name}")
    (finished,) = composed.Scalars(f"newest_source/{name}")
    assert (first.step, last.step) == (5, STEPS)
    assert last.value == finished.value


def test_the_band_of_kid_is_one_deviation_wide(composed: EventAccumulator) -> None:
    kid, deviation, lower, upper = (
        composed.Scalars(f"{tag}@4_effnet-lite0")[0].value
        for tag in ("composed/kid", "composed/kid_deviation", "kid_band/composed_lower", "kid_band/composed_upper")
    )
    assert (lower, upper) == pytest.approx((kid - deviation, kid + deviation), rel=1e-5)


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_the_losses_by_noise_make_up_the_loss(step: int, in_training: EventAccumulator) -> None:
    """Oracle: the noise levels of the step, drawn again."""
    sigma = draw_sigma(BATCH, SIGMA_MIN, SWITCH, generator(0, "digit0", "train", step, 0))
    count = noise_quartile(sigma, SIGMA_MIN, SWITCH).bincount(minlength=4).tolist()
    total = sum(
        images * next(event.value for event in in_training.Scalars(f"loss_by_noise/{name}") if event.step == step)
        for name, images in zip(QUARTILES, count, strict=True)
        if images
    )
    (loss,) = (event.value for event in in_training.Scalars("loss") if event.step == step)
    assert total / BATCH == pytest.approx(loss, rel=1e-5)


def test_norms_and_speed_are_logged_at_every_step(in_training: EventAccumulator) -> None:
    for tag in ("norm/gradient", "norm/parameters", "training/images_per_second", "training/learning_rate"):
        logged = in_training.Scalars(tag)
        assert [event.step for event in logged] == list(range(STEPS))
        assert all(event.value > 0 for event in logged)


def test_a_norm_is_that_of_all_numbers_together() -> None:
    assert norm([torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])]) == pytest.approx(7.0)


@pytest.mark.parametrize("run", ["in_training", "unmeasured", "composed"])
def test_every_chart_of_the_layout_has_something_to_show(run: str, request: pytest.FixtureRequest) -> None:
    found: EventAccumulator = request.getfixturevalue(run)
    scalars = found.Tags()["scalars"]
    (event,) = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert len(charts) >= 5
    for chart in charts:
        series = [(each.value, each.lower, each.upper) for each in chart.margin.series]
        for tags in (*series, *((tag,) for tag in chart.multiline.tag)):
            assert all(any(re.search(tag, scalar) for scalar in scalars) for tag in tags), (chart.title, tags)


@pytest.mark.parametrize("run", ["in_training", "composed"])
def test_hyperparameters_name_scalars_that_are_there(
    run: str, request: pytest.FixtureRequest, in_training: EventAccumulator, composed: EventAccumulator
) -> None:
    found: EventAccumulator = request.getfixturevalue(run)
    parts = found.summary_metadata
    data = {tag: plugin_data_pb2.HParamsPluginData.FromString(parts[tag].plugin_data.content) for tag in parts}
    experiment = data["_hparams_/experiment"].experiment
    names = [info.name.tag for info in experiment.metric_infos]
    assert set(names) & set(found.Tags()["scalars"])
    assert set(names) <= {*in_training.Tags()["scalars"], *composed.Tags()["scalars"]}
    values = data["_hparams_/session_start_info"].session_start_info.hparams
    assert values["compartment"].string_value == "tokens"
    assert values["width"].number_value == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metrics.every", "-1"), "metrics.every is -1; expected a number of steps, or 0"),
        (("--metrics.every", "5"), "metrics.every is 5, but metrics.extractor is none: choose effnet-lite0"),
        (("--metrics.extractor", "effnet-lite0", "--metrics.n", "1"), "metrics.n is 1; expected at least 2 images"),
    ],
)
def test_what_cannot_be_measured_is_told(
    options: tuple[str, ...], said: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "store", "[digit0]", *options) == 2
    assert capsys.readouterr().err == f"cdm_lightning: error: {said}\n"
    assert not (tmp_path / "store").exists()


def test_the_resolved_configuration_is_there_as_text(measured: Path, in_training: EventAccumulator) -> None:
    (event,) = in_training.Tensors("config/text_summary")
    written = (measured / "runs" / "sources" / "digit0" / "config.yaml").read_text()
    assert event.tensor_proto.string_val[0].decode() == f"```yaml\n{written}```"
