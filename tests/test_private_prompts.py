"""Private prompts by command line: budget, what is stored and logged, resuming, neighbours, and what is refused."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cdm_lightning import private_fitting, private_training
from cdm_lightning.card import model_card
from cdm_lightning.cli import main
from cdm_lightning.errors import BadInput
from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.gaussian_mechanism import composed, epsilon_of, mu_of
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.outputs import outputs_of
from cdm_lightning.packing import open_compartments
from cdm_lightning.phase import Phase
from cdm_lightning.privacy import SLACK_SHARE, Privacy, together
from cdm_lightning.private_fitting import check_privacy
from cdm_lightning.private_runs import MARK, RECORD
from cdm_lightning.private_training import typical_norm
from cdm_lightning.releases import RELEASES, cost_of, released
from cdm_lightning.seeding import generator
from cdm_lightning.store import COMPARTMENT, Store
from cdm_lightning.subsampled_gaussian import epsilon_after
from cdm_lightning.tensor_files import unpack
from cdm_lightning.training import CHECKPOINT
from datamodules.manifest import read_manifest
from tests.conftest import Fit
from tests.test_privacy import error_of, files, interrupted, published, secret  # noqa: F401  (the fixture)

STEPS = 6
PROMPT = ("--model.compartment", "tokens", "--model.tokens", "2", "--trainer.max_steps", str(STEPS))
PRIVATE = (
    "--privacy.epsilon",
    "8",
    "--privacy.delta",
    "1e-4",
    "--privacy.draws",
    "2",
    "--privacy.prompt_share",
    "0.4",
    *PROMPT,
)

LOGGED = ("--trainer.logger", "true", "--trainer.log_every_n_steps", "1")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Compute every noise multiplier and epsilon once, and validate no composed model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_fitting, "multiplier_for", cache(private_fitting.multiplier_for))
        once = cache(epsilon_after)
        patch.setattr(private_training, "epsilon_after", lambda history, delta: once(tuple(history), delta))
        patch.setattr("cdm_lightning.fitting.validate_composed", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def private(store: Path, fit: Fit, secret: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Return a store of three plain sources and a private one with a prompt, digit4; read it, do not change it."""
    path = Path(shutil.copytree(store, tmp_path_factory.mktemp("private prompt") / "store"))
    assert fit(path, "[digit4]", *PRIVATE, *secret, *LOGGED) == 0
    return path


def plain(store: Path, place: Path) -> Path:
    return Path(shutil.copytree(store, place))


def tensors(store: Path) -> dict[str, torch.Tensor]:
    return unpack((store / "compartments" / "digit4" / COMPARTMENT).read_bytes(), store)[0]


def test_card_accounts_and_listings_agree(private: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, spent = Store.open(private).read_card("digit4"), released(private, "digit4")
    assert (card.compartment, card.steps, card.epsilon, card.delta) == ("tokens", STEPS, 8.0, 1e-4)
    assert card.prompt_parameters == tensors(private)["prompt.tokens"].numel() == 3 * 2 * 16
    assert card.settings["sampling_rate"] == 16 / card.n
    assert card.slack == spent.slack == SLACK_SHARE * 1e-4
    assert spent.mus == pytest.approx([mu_of(8, 1e-4 - card.slack)])
    assert spent.epsilon(1e-4) == pytest.approx(8.0)
    assert "Differentially private: epsilon 8, delta 0.0001, in one release" in model_card(card)
    assert main(["store", "list", "--store", str(private)]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("digit4"))
    assert (row[3], row[6]) == ("tokens", "8")
    assert main(["store", "verify", "--store", str(private)]) == 0
    one = together([cost_of(private, card)])
    assert one is not None
    assert (one.epsilon, one.epsilon_of_all) == pytest.approx((8.0, 8.0))


def test_closed_form_and_prompt_are_within_the_budget_by_opacus(private: Path) -> None:
    """The accountant of another project, called with what the card says."""
    card = Store.open(private).read_card("digit4")
    form = mu_of(8, 1e-4 - card.slack) * (1 - float(card.settings["prompt_share"] or 0)) ** 0.5
    steps = (float(card.settings["noise_multiplier"] or 0), 16 / card.n, STEPS)
    assert 0.85 * 8 < epsilon_after([(1 / form, 1.0, 1), steps], 1e-4) < 8.02


def test_the_prompt_takes_part(private: Path) -> None:
    opened = open_compartments(Store.open(private), ["digit0", "digit4"], sigma_switch=None, device="cpu")
    x = torch.randn(2, *opened.public.closed_form.shape, generator=generator("x"))
    prompted = opened["digit4"](x, torch.full((2,), 0.5))
    nn.init.zeros_(opened.compartments["digit4"].prompt.tokens)  # type: ignore[union-attr]
    assert not torch.equal(opened["digit4"](x, torch.full((2,), 0.5)), prompted)


def test_gradients_are_cut_at_what_the_released_closed_form_says(private: Path, workplace: Path) -> None:
    """Found again from the published compartment alone; of half its variance the norm would be another."""
    parser, store = fit_parser(), Store.open(private)
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "no images")]
    recipe = ConfiguredRecipe(parser, parser.parse_args([*where, *PRIVATE]))
    card, own = store.read_card("digit4"), open_compartments(store, ["digit4"], sigma_switch=None, device="cpu")
    released = replace(own.compartments["digit4"], prompt=None)
    norm = typical_norm(recipe, store, Phase("source", "digit4", 1, 1), released)
    assert card.settings["clipping_norm"] is None
    assert card.settings["clipped_at"] == norm > 0
    other = replace(released, closed_form=replace(released.closed_form, variance=released.closed_form.variance / 2))
    assert typical_norm(recipe, store, Phase("source", "digit4", 1, 1), other) != norm


def test_epsilon_is_logged_and_no_loss(private: Path) -> None:
    own = private / "runs" / "sources" / "digit4"
    board = EventAccumulator(str(own / "prompt")).Reload()
    tags = set(board.Tags()["scalars"])
    logged = [one.value for one in board.Scalars("epsilon")]
    assert len(logged) == STEPS
    assert logged == sorted(logged)
    assert not [tag for tag in tags if "loss" in tag], "HParams alone names a loss, which has no value"
    assert {Path(name).name.split(".")[0] for name in files(own)} <= {
        *(MARK, RECORD.split(".")[0], "config", "hparams", "seconds", "events")
    }


def test_epsilon_rises_to_the_budget(store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, float]] = []
    original = CompartmentalizedDiffusion.log

    def log(module: CompartmentalizedDiffusion, name: str, value: Any, **named: Any) -> None:
        logged.append((name, float(value)))
        original(module, name, value, **named)

    monkeypatch.setattr(CompartmentalizedDiffusion, "log", log)
    assert fit(plain(store, tmp_path / "store"), "[digit4]", *PRIVATE) == 0
    assert [name for name, _ in logged] == ["epsilon"] * STEPS
    values = [value for _, value in logged]
    assert values == sorted(values)
    assert 4 < values[0] < values[-1] <= 8


def test_the_secret_makes_the_bytes_and_nothing_of_the_source_is_left(
    private: Path,
    store: Path,
    fit: Fit,
    secret: tuple[str, str],  # noqa: F811
    workplace: Path,
    tmp_path: Path,
) -> None:
    again = plain(store, tmp_path / "again")
    assert fit(again, "[digit4]", *PRIVATE, *secret) == 0
    assert published(again) == published(private)
    manifest = read_manifest(workplace / "shards" / "digit4")
    told = [*manifest.samples, *(one.sha256 for one in manifest.samples.values())]
    told += [json.loads((private / "runs" / "sources" / "digit4" / RECORD).read_text())["data_sha256"]]
    for name, data in published(private).items():
        assert not [text for text in told if text.encode() in data], name
    needle = Path(secret[1]).read_bytes().strip()
    assert not [name for name, data in files(private).items() if needle in data]


def test_up_to_date_costs_nothing_and_a_refit_adds_up(
    private: Path,
    fit: Fit,
    secret: tuple[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    copy = plain(private, tmp_path / "copy")
    assert fit(copy, "[digit4]", *PRIVATE) == 0
    assert published(copy) == published(private)
    assert fit(copy, "[digit4]", *PRIVATE, "--refit") == 0
    card, spent, slack = Store.open(copy).read_card("digit4"), released(copy, "digit4"), SLACK_SHARE * 1e-4
    assert (len(spent.mus), spent.slack) == (2, pytest.approx(2 * slack))
    assert card.epsilon == pytest.approx(epsilon_of(composed([mu_of(8, 1e-4 - slack)] * 2), 1e-4 - 2 * slack))
    assert card.slack == spent.slack
    same = torch.equal(tensors(copy)["prompt.tokens"], tensors(private)["prompt.tokens"])
    assert not same, "without the file the secret is another one"


def test_neighbours_have_the_same_files_sizes_steps_and_keys(
    private: Path,
    store: Path,
    fit: Fit,
    secret: tuple[str, str],  # noqa: F811
    workplace: Path,
    tmp_path: Path,
) -> None:
    samples = read_manifest(workplace / "shards" / "digit4").samples
    (tmp_path / "exclude").write_text(next(key for key in samples if samples[key].part == "train") + "\n")
    other = plain(store, tmp_path / "other")
    assert fit(other, "[digit4]", *PRIVATE, *secret, "--data.exclude", str(tmp_path / "exclude")) == 0
    assert published(private).keys() == published(other).keys()
    one, two = tensors(private), tensors(other)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    cards = [json.loads((path / "compartments" / "digit4" / "card.json").read_text()) for path in (private, other)]
    for card in cards:
        assert card["settings"].pop("sampling_rate") == 16 / card.pop("n"), "by the released number"
        card["settings"].pop("noise_multiplier")
        card["settings"].pop("clipped_at")  # by the released closed form
    assert cards[0] == cards[1]
    assert float((one["prompt.tokens"] - two["prompt.tokens"]).abs().max()) > 1e-4, "other images have other noise"


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_what_was_interrupted_goes_on_and_is_one_release(
    step: int,
    private: Path,
    store: Path,
    fit: Fit,
    secret: tuple[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy, original = plain(store, tmp_path / "copy"), CompartmentalizedDiffusion.training_step
    options = (*PRIVATE, *secret, "--trainer.enable_checkpointing", "true", "--checkpoint_every", "2")
    begun = []

    def killed(module: CompartmentalizedDiffusion, batch: dict[str, Any], batch_idx: int) -> dict[str, torch.Tensor]:
        begun.append(module.global_step)
        if len(begun) == step + 1:
            raise Killed
        return original(module, batch, batch_idx)

    def not_stored(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(CompartmentalizedDiffusion, "training_step", killed)
    with monkeypatch.context() as patch:
        if step == STEPS:
            patch.setattr(Store, "write_compartment", not_stored)
        with pytest.raises(Killed):
            fit(copy, "[digit4]", *options)
    assert len(released(copy, "digit4").mus) == 1
    assert not Store.open(copy).has_compartment("digit4")
    assert fit(copy, "[digit4]", *options) == 0
    again = begun[step + 1 :] if step < STEPS else begun[step:]
    assert again == list(range(step // 2 * 2, STEPS)), "it goes on from the newest checkpoint"
    assert published(copy) == published(private)
    assert len(released(copy, "digit4").mus) == 1
    left = {Path(name).name for name in files(copy / "runs" / "sources" / "digit4")}
    assert not left & {CHECKPOINT, private_training.RELEASED}


def test_what_a_finished_release_has_left_is_not_the_next_one(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that is cut between the compartment and the end leaves its closed form and the state of its training."""
    copy = plain(store, tmp_path / "copy")
    options = (*PRIVATE, "--trainer.enable_checkpointing", "true", "--checkpoint_every", "4")
    with monkeypatch.context() as patch:
        patch.setattr(private_fitting, "keep_record", interrupted)
        assert fit(copy, "[digit4]", *options) == 130
    first, own = tensors(copy), copy / "runs" / "sources" / "digit4"
    assert (own / private_training.RELEASED).exists()
    assert fit(copy, "[digit4]", *options, "--refit") == 0
    assert len(released(copy, "digit4").mus) == Store.open(copy).read_card("digit4").settings["releases"] == 2
    assert not torch.allclose(first["fine.mean"], tensors(copy)["fine.mean"], atol=1e-2), "a release of its own"


def test_logs_elsewhere_are_noted(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy, logs = plain(store, tmp_path / "copy"), tmp_path / "logs"
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(logs))
    assert fit(copy, "[digit4]", *PRIVATE, *logger) == 0
    assert outputs_of(copy / "runs", "digit4") == [logs]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.compartment", "lora"), "only tokens are trained with privacy so far: choose model.compartment"),
        (("--model.compartment", "full"), "only tokens are trained with privacy so far: choose model.compartment"),
        (("--model.class_labels", "true"), "its classes would be released without privacy"),
        (("--data.public_mix", "0.5"), "its prompt is trained on its own images alone: leave data.public_mix 0"),
        (("--trainer.precision", "16-mixed"), "trainer.precision 16 is refused"),
        (("--trainer.accumulate_grad_batches", "2"), "trainer.accumulate_grad_batches is refused"),
        (("--trainer.max_steps", "0"), "a prompt needs at least 1 training step"),
        (("--privacy.delta", "0.5"), "privacy.delta is 0.5, above 1 / n of source 'digit4'"),
        (("--privacy.draws", "0"), "privacy.draws is 0; expected at least 1"),
        (("--privacy.prompt_share", "1"), "privacy.prompt_share is 1.0; expected a number between 0 and 1"),
        (("--privacy.clipping_norm", "0"), "privacy.clipping_norm is 0.0; expected a number above 0"),
    ],
)
def test_what_cannot_be_trained_with_privacy_is_refused(
    options: tuple[str, ...], said: str, store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = plain(store, tmp_path / "copy")
    before = published(copy)
    assert fit(copy, "[digit4]", *PRIVATE, *options) == 2
    assert said in error_of(capsys)
    assert published(copy) == before
    assert (copy / RELEASES).exists() == ("above 1 / n" in said), "the released number of images is told"


def test_a_source_too_large_for_memory_is_told_how_large(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(private_training, "memory", lambda: 2.0**17)
    assert fit(plain(store, tmp_path / "copy"), "[digit4]", *PRIVATE) == 2
    said = error_of(capsys)
    assert "all of its images must be in memory at once: about 0.000" in said
    assert "GiB, and this machine has 0.000122" in said
    monkeypatch.undo()
    assert private_training.memory() > 2**28


@pytest.mark.parametrize("fault", ["batch norm", "no opacus", "two processes"])
def test_what_no_option_says_is_checked_before_anything_is_released(
    fault: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = fit_parser()
    where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards")]
    recipe = ConfiguredRecipe(parser, parser.parse_args([*where, *PRIVATE]))
    module, said = recipe.module(), "needs the package opacus"
    if fault == "batch norm":
        module.backbone.norm, said = nn.BatchNorm1d(5), "layer 'norm' is a BatchNorm"
    elif fault == "two processes":
        recipe.training["ranks"], said = 2, "its prompt is trained in one process"
    else:
        monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(BadInput, match=said):
        check_privacy(recipe, module, recipe.data(), ["digit4"])


def test_prompts_that_used_delta_up_are_told(
    private: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = plain(private, tmp_path / "copy")
    line = json.loads((copy / RELEASES).read_text()) | {"slack": 9.9e-5}
    (copy / RELEASES).write_text(json.dumps(line) + "\n")
    assert fit(copy, "[digit4]", *PRIVATE, "--refit") == 2
    assert "have used up privacy.delta 0.0001" in error_of(capsys)
    assert len(released(copy, "digit4").mus) == 1


def test_the_shares_add_up_to_the_budget() -> None:
    assert Privacy().shares(prompt=True) is None
    privacy = Privacy(epsilon=3.0, delta=1e-5, prompt_share=0.2)
    alone, both = privacy.shares(prompt=False), privacy.shares(prompt=True)
    assert alone is not None
    assert both is not None
    assert (alone.mu, alone.prompt, alone.slack) == (mu_of(3.0, 1e-5), 0.0, 0.0)
    assert epsilon_of(both.mu, 1e-5 - both.slack) == pytest.approx(3.0)
    assert both.prompt**2 / both.mu**2 == pytest.approx(0.2)
