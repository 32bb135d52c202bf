"""`fit`, by command line: what is finished is skipped, what is interrupted starts anew, what is wrong is told."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.sample_grid import IMAGES
from cdm_lightning import exchange, generation, tensor_files
from cdm_lightning.backbone import tensors_sha256
from cdm_lightning.denoiser import SIGMA_MAX
from cdm_lightning.fit_record import fit_record
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.solvers import Denoise
from cdm_lightning.store import CONFIG, Store
from cdm_lightning.training import train
from datamodules.manifest import read_manifest
from tests.conftest import Fit
from tests.faults import lose_power
from tests.made_shards import content


def tree(store: Path) -> dict[str, str]:
    """Return the sha256 of every file of a store but its runs and ledger."""
    files = [path for path in store.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix != ".lock" and path.name != "ledger.jsonl"
    }


def test_what_is_up_to_date_is_skipped(store: Path, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    caplog.set_level("INFO")
    assert fit(copy, "[digit0, digit2]") == 0
    assert [record.message for record in caplog.records if "up to date" in record.message] == [
        "[1/2] source digit0: up to date, skipped",
        "[2/2] source digit2: up to date, skipped",
    ]
    assert (copy / "ledger.jsonl").read_bytes() == (store / "ledger.jsonl").read_bytes()


def test_refit_and_changed_inputs_fit_again(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    assert fit(copy, "[digit0]", "--refit") == 0
    assert fit(copy, "[digit1]", "--seed", "0", "--model.compartment", "tokens", "--trainer.max_steps", "2") == 0
    events = [json.loads(line) for line in (copy / "ledger.jsonl").read_text().splitlines()][-2:]
    assert [(event["event"], event["source"]) for event in events] == [("refitted", "digit0"), ("refitted", "digit1")]
    assert events[0]["before"] == events[0]["after"], "the same inputs give the same bytes"
    assert events[1]["before"] != events[1]["after"]


def test_the_number_of_clusters_is_the_sources_own(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    assert fit(copy, "[digit0, digit1]", "--model.clusters", "1") == 0
    tensors, card = Store.open(copy).read_compartment("digit0")
    assert card.settings == {"clusters": 1, "rank": 16}
    assert len(tensors["fine.mean"]) == 1
    assert fit(copy, "[digit0, digit1]") == 0
    assert tree(copy / "compartments") == tree(store / "compartments"), "the default is written as if it were not there"


def test_the_optimizer_is_noted_where_it_matters(store: Path, fit: Fit, tmp_path: Path) -> None:
    """It is the backbone's, and that of a copy of it; tokens do not change, so they are not fitted again."""
    muon, short = ("--model.optimizer", "muon"), ("--trainer.max_steps", "2")
    assert fit(tmp_path / "muon", "[]", *muon) == 0
    assert Store.open(tmp_path / "muon").read_backbone()[1]["optimizer"] == "muon"
    assert "optimizer" not in Store.open(store).read_backbone()[1], "the usual one is written as if it were not there"
    assert tree(tmp_path / "muon")["backbone.safetensors"] != tree(store)["backbone.safetensors"]
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    for kind, differs in (("tokens", False), ("full", True)):
        cards, trees = [], []
        for optimizer in ((), muon):
            assert fit(copy, "[digit0]", "--model.compartment", kind, *short, *optimizer) == 0
            cards.append(Store.open(copy).read_compartment("digit0")[1].settings.get("optimizer"))
            trees.append(tree(copy / "compartments"))
        assert cards == [None, "muon" if differs else None]
        assert (trees[0] != trees[1]) == differs


@pytest.mark.parametrize("broken", ["train", "Store.write_compartment"])
def test_an_interrupted_fit_goes_on_and_ends_in_the_same_bytes(
    broken: str, store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ("--model.compartment", "tokens", "--trainer.max_steps", "20")
    undisturbed = Path(shutil.copytree(store, tmp_path / "undisturbed"))
    disturbed = Path(shutil.copytree(store, tmp_path / "disturbed"))
    assert fit(undisturbed, "[digit3, digit4, digit5]", *tokens) == 0

    calls = 0
    original = train if broken == "train" else Store.write_compartment

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(f"cdm_lightning.fitting.{broken}", interrupted)
    assert fit(disturbed, "[digit3, digit4, digit5]", *tokens) == 130
    assert set(Store.open(disturbed).sources()) == {"digit0", "digit1", "digit2", "digit3"}
    monkeypatch.undo()
    assert fit(disturbed, "[digit3, digit4, digit5]", *tokens) == 0
    assert tree(disturbed) == tree(undisturbed)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", range(4))
def test_a_disk_that_cannot_be_written_leaves_the_store_as_it_was(
    call: int,
    fault: int,
    store: Path,
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed, disturbed = (Path(shutil.copytree(store, tmp_path / name)) for name in ("undisturbed", "disturbed"))
    assert fit(undisturbed, "[digit3]") == 0
    original, calls = tensor_files.write_synced, 0

    def failing(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(fault, os.strerror(fault), str(path))
        original(path, data)

    with monkeypatch.context() as patch:
        for module in (tensor_files, exchange):
            patch.setattr(module, "write_synced", failing)
        code = fit(disturbed, "[digit3]")
    said = capsys.readouterr().err.strip().splitlines()
    assert (code, len(said)) == (2, 1), "one compartment and the note of what was composed are more than four files"
    assert "cdm_lightning: error: cannot write" in said[0]
    if call < 3:
        assert tree(disturbed) == tree(store)
    assert fit(disturbed, "[digit3]") == 0
    assert tree(disturbed) == tree(undisturbed)


def test_training_stopped_early_stores_nothing(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="training ended at step 0 of 5"):
        fit(copy, "[digit3]", "--model.compartment", "tokens", "--trainer.max_steps", "5")
    assert tree(copy) == tree(store)


def test_training_that_touches_the_backbone_stores_nothing(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    original = CompartmentalizedDiffusion.on_train_end

    def careless(module: CompartmentalizedDiffusion) -> None:
        original(module)
        module.backbone.norm.bias.add_(1e-7)  # type: ignore[union-attr, operator]

    monkeypatch.setattr(CompartmentalizedDiffusion, "on_train_end", careless)
    with pytest.raises(RuntimeError, match="training changed the frozen backbone"):
        fit(copy, "[digit3]", "--model.compartment", "tokens", "--trainer.max_steps", "2")
    assert tree(copy) == tree(store)


def test_a_missing_file_is_fitted_again(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "compartments" / "digit0" / "compartment.safetensors").unlink()
    assert fit(copy, "[digit0]") == 0
    assert tree(copy) == tree(store)


def test_only_the_backbone(fit: Fit, store: Path, tmp_path: Path) -> None:
    assert fit(tmp_path / "store", "[]") == 0
    assert Store.open(tmp_path / "store").sources() == []
    assert (tmp_path / "store" / "backbone.safetensors").read_bytes() == (store / "backbone.safetensors").read_bytes()


def test_the_stored_backbone_is_trained_and_frozen_again(store: Path) -> None:
    tensors, metadata = Store.open(store).read_backbone()
    backbone, _ = unpack_backbone(tensors, metadata)
    before = tensors_sha256(backbone)
    assert float(backbone.final_layer.weight.abs().sum()) > 0
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert tensors_sha256(backbone) == before


def test_plain_backbone_with_tokens_goes_through_the_same_commands(fit: Fit, tmp_path: Path) -> None:
    plain = ("--model.guide", "none", "--model.compartment", "tokens", "--trainer.max_steps", "3")
    assert fit(tmp_path / "store", "[digit0, digit1]", "--model.backbone_steps", "3", *plain) == 0
    tensors, metadata = Store.open(tmp_path / "store").read_backbone()
    assert metadata["guide"] == "none"
    assert not any("guide_embed" in name for name in tensors)


def test_a_prompt_of_a_model_without_a_switch_is_used_at_every_level(fit: Fit, tmp_path: Path) -> None:
    plain = ("--model.guide", "none", "--model.compartment", "tokens", "--trainer.max_steps", "3")
    options = ("--model.backbone_steps", "3", *plain, "--model.sigma_switch", "inf")
    assert fit(tmp_path / "store", "[digit0]", *options) == 0
    opened = open_compartments(Store.open(tmp_path / "store"), "all", sigma_switch=None, device="cpu")
    assert opened.sigma_switch == float("inf")
    x, highest = torch.zeros(2, 1, 8, 8), torch.full((2,), SIGMA_MAX)
    opened["digit0"](x, highest)
    assert opened.evaluations == 2


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        ("[digitt1]", (), "unknown source 'digitt1'"),
        ("[digit0]", ("--model.guide", "none"), "holds another backbone: its backbone.init_args.guided is True"),
        ("[digit0]", ("--model.rank", "12"), "its rank is 16, the configuration says 12"),
        ("[digit0]", ("--model.sigma_switch", "0.5"), "its sigma_switch is 3.0, the configuration says 0.5"),
        ("[digit0]", ("--data.image_size", "16"), "images of size 8 with 1 channels, but the settings say size 16"),
        ("[digit0]", ("--model.backbone_steps", "0"), "model.backbone_steps is 0; expected at least 1"),
        ("[digit0]", ("--model.backbone_steps", "41"), "its steps is 40, the configuration says 41"),
        ("[digit0]", ("--trainer.max_time", "00:00:01:00"), "trainer.max_time is refused: a phase must end after"),
        ("[digit0]", ("--trainer.precision", "16-mixed"), "its loss scale is found by trial"),
        ("[digit0]", ("--trainer.limit_train_batches", "3"), "it would leave most of the source out"),
        ("[digit0]", ("--trainer.overfit_batches", "1"), "overfit_batches is refused: it would leave most"),
        ("[digit0]", ("--trainer.fast_dev_run", "true"), "it would store a compartment that was not trained"),
        ("[digit0]", ("--trainer.fast_dev_run", "1"), "it would store a compartment that was not trained"),
        ("[digit0]", ("--trainer.max_epochs", "1"), "the stream of a source has no epochs"),
        ("[digit0]", ("--model.compartment", "tokens", "--trainer.max_steps", "0"), "a prompt needs at least 1"),
        ("[digit0]", ("--model.strategy", "draft", "--model.guide", "none"), "so it needs model.guide closed_form"),
        ("[digit0]", ("--model.sigma_switch", "0"), "model.sigma_switch is 0.0; expected a noise level above"),
        ("[digit0]", ("--model.backbone.init_args.patch_size", "3"), "patch_size is 3; expected a divisor"),
        ("[digit0]", ("--seed", "-1"), "seed is -1; expected 0 to 4294967295"),
        ("[digit0]", ("--checkpoint_every", "-1"), "checkpoint_every is -1; expected at least 1"),
        ("[digit0]", ("--sampler.steps", "1"), "sampler.steps is 1; expected at least 2"),
        ("[digit0]", ("--model.learning_rate", "0"), "model.learning_rate is 0.0; expected a number above 0"),
        ("[digit0]", ("--model.prompt_learning_rate", "-1"), "prompt_learning_rate is -1.0; expected a number above"),
        ("[digit0]", ("--model.ema_decay", "1.5"), "model.ema_decay is 1.5; expected at least 0 and below 1"),
        ("[digit0]", ("--trainer.gradient_clip_algorithm", "foo"), "trainer: `gradient_clip_algorithm` foo is invalid"),
        ("[digit0]", ("--trainer.profiler", "bogus"), "trainer: When passing string value for the `profiler`"),
        ("[digit0]", ("--trainer.strategy", "bogus"), "trainer: You selected an invalid strategy name"),
        ("[digit0]", ("--trainer.barebones", "true"), "trainer: "),
        ("[digit0]", ("--trainer.accelerator", "cpu", "--trainer.devices", "0"), "trainer: "),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    sources: str, options: tuple[str, ...], said: str, store: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(store)
    assert fit(store, sources, *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert tree(store) == before


def test_a_training_that_does_not_end_leaves_the_record_of_the_stored_one(
    store: Path, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    tokens = ("--model.compartment", "tokens", "--trainer.max_steps")
    assert fit(copy, "[digit0]", *tokens, "2") == 0
    folder = copy / "runs" / "sources" / "digit0"
    before, names = (folder / CONFIG).read_text(), {path.name for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(CompartmentalizedDiffusion, "training_step", lose_power)
        with pytest.raises(RuntimeError, match="lost power"):
            fit(copy, "[digit0]", *tokens, "3")
    assert (folder / CONFIG).read_text() == before
    assert fit(copy, "[digit0]", *tokens, "3") == 0
    assert (folder / CONFIG).read_text() == before.replace("max_steps: 2", "max_steps: 3") != before
    assert {path.name for path in folder.iterdir()} == names


def test_a_damaged_card_is_replaced_by_a_fit_that_is_asked_for(
    store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "compartments" / "digit0" / "card.json").write_text("{")
    assert fit(copy, "[digit0]") == 2
    assert "fit it again" in capsys.readouterr().err
    assert fit(copy, "[digit0]", "--refit") == 0
    assert tree(copy / "compartments") == tree(store / "compartments")


def test_changed_public_is_refused(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data.root", str(tmp_path / "shards"), "--data.public_fraction", "0.3")
    assert fit(store, "[digit0]", *arguments) == 2
    assert "public has changed since the backbone" in capsys.readouterr().err


def test_a_source_without_images_is_refused_before_anything_is_trained(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((workplace / "shards" / "digit4" / "manifest.json").read_text())
    (tmp_path / "excluded.txt").write_text("\n".join(manifest["samples"]))
    assert fit(tmp_path / "new", "[digit3, digit4]", "--data.exclude", str(tmp_path / "excluded.txt")) == 2
    assert "source 'digit4' has no training image left" in capsys.readouterr().err
    assert not (tmp_path / "new" / "backbone.safetensors").exists()


@pytest.mark.parametrize("cut", range(12))
def test_a_cut_or_changed_tar_is_noticed(
    cut: int, store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(workplace / "shards", tmp_path / "shards"))
    tar = shards / "digit5" / "00000.tar"
    data = bytearray(tar.read_bytes())
    if cut < 11:
        del data[len(data) * cut // 11 :]
    else:
        data[700] ^= 1
    tar.write_bytes(data)
    before = tree(store)
    assert fit(store, "[digit3, digit5]", "--data.root", str(shards)) == 2
    said = capsys.readouterr().err
    assert "digit5" in said
    assert "00000.tar" in said
    assert tree(store) == before


def test_few_images_are_warned_of(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    manifest = json.loads((workplace / "shards" / "digit6" / "manifest.json").read_text())
    train_keys = [key for key, sample in sorted(manifest["samples"].items()) if sample["part"] == "train"]
    (tmp_path / "excluded.txt").write_text("\n".join(train_keys[1:]))
    assert fit(copy, "[digit6]", "--data.exclude", str(tmp_path / "excluded.txt")) == 0
    assert "source digit6: only 1 images; a closed form of so few may reveal them" in caplog.text
    assert Store.open(copy).read_card("digit6").n == 1
    tokens = ("--model.compartment", "tokens", "--trainer.max_steps", "2")
    assert fit(copy, "[digit6]", "--data.exclude", str(tmp_path / "excluded.txt"), *tokens) == 0
    assert bool(Store.open(copy).read_compartment("digit6")[0]["prompt.tokens"].isfinite().all())


def test_seed_changes_prompts_and_their_order_of_training(store: Path, fit: Fit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    tensors = []
    for seed in ("0", "1"):
        options = ("--seed", seed, "--model.compartment", "tokens", "--trainer.max_steps", "2")
        assert fit(copy, "[digit7]", *options) == 0
        tensors.append(Store.open(copy).read_compartment("digit7")[0]["prompt.tokens"])
    assert not torch.equal(*tensors)


def test_a_head_needs_a_guided_backbone(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "store", "[digit0]", "--model.guide", "none", "--model.compartment", "head") == 2
    assert "trains a copy of the convolutions of a guided UViT, and this backbone has none" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["tokens", "lora", "head", "full"])
def test_bfloat16_trains_weights_in_single_precision(kind: str, store: Path, fit: Fit, tmp_path: Path) -> None:
    """Oracle: the same training in single precision, which it equals to the three digits of a bfloat16."""
    prompts = []
    for precision in ("32-true", "bf16-mixed"):
        copy = Path(shutil.copytree(store, tmp_path / precision))
        options = ("--model.compartment", kind, "--trainer.max_steps", "10", "--trainer.precision", precision)
        assert fit(copy, "[digit0]", *options) == 0
        prompts.append(Store.open(copy).read_compartment("digit0")[0])
        assert {tensor.dtype for tensor in prompts[-1].values()} == {torch.float32}
    own = [name for name in prompts[0] if name.startswith("prompt.")]
    single, half = (torch.cat([tensors[name].flatten() for name in own]) for tensors in prompts)
    assert not torch.equal(single, half)
    assert (single - half).norm() / single.norm() < 0.05
    shared = [name for name in prompts[0] if name not in own]
    assert all(torch.equal(prompts[0][name], prompts[1][name]) for name in shared), "closed forms are never rounded"


def test_nobody_who_looks_no_validation(fit: Fit, store: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(store, tmp_path / "store"))
    history = place / "runs" / "composed" / "forgetting.json"
    for source, options, seen in (
        ("digit3", (), False),
        ("digit4", ("--trainer.callbacks+", "ModelSummary"), True),
    ):
        assert fit(place, f"[{source}]", *options) == 0
        assert history.exists() == seen
        assert fit_record(Store.open(place)).strategy == "routed", "what other commands ask the newest fit for is there"


def test_a_callback_that_cannot_be_made_is_told(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = '[{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -2}}]'
    assert fit(tmp_path / "store", "[digit3]", "--trainer.callbacks", broken) == 2
    assert "trainer: an object that the configuration names cannot be made: Invalid" in capsys.readouterr().err


def test_validation_samples_as_the_configuration_says(
    fit: Fit, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, str, int]] = set()
    original = generation.sample

    def noting(denoise: Denoise, noise: torch.Tensor, sigmas: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.add((len(noise), options["method"], len(sigmas) - 1))
        return original(denoise, noise, sigmas, **options)

    monkeypatch.setattr(generation, "sample", noting)
    shutil.copytree(store, tmp_path / "store")
    sampler = ("--sampler.name", "dpmpp_2m", "--sampler.steps", "5", "--trainer.logger", "true")
    assert fit(tmp_path / "store", "[digit3]", *sampler, "--metrics.extractor", "effnet-lite0", "--metrics.n", "5") == 0
    assert seen == {(IMAGES, "dpmpp_2m", 5), (5, "dpmpp_2m", 5)}, "samples to look at, and to measure"


def test_a_training_that_diverged_stores_nothing(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "new", "[digit0]", "--model.learning_rate", "1e20") == 2
    assert "public: the training diverged, and nothing of it is stored" in capsys.readouterr().err
    assert not Store(tmp_path / "new").has_backbone()
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    options = ("--model.compartment", "full", "--model.prompt_learning_rate", "1e20", "--trainer.max_steps", "20")
    before = content(copy / "compartments")
    assert fit(copy, "[digit0]", *options, "--refit") == 2
    assert "choose a lower model.prompt_learning_rate" in capsys.readouterr().err
    assert content(copy / "compartments") == before


def test_what_a_prompt_needs_is_checked_before_the_backbone_is_trained(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "new", "[digit0]", "--model.compartment", "tokens", "--trainer.max_steps", "0") == 2
    assert "a prompt needs at least 1 training step" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_backbone_that_was_trained_otherwise_is_kept_and_told(
    store: Path, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    before = (copy / "backbone.safetensors").read_bytes()
    assert fit(copy, "[digit0]") == 0
    assert "stays as it is" not in caplog.text
    assert fit(copy, "[digit0]", "--model.learning_rate", "0.5", "--model.optimizer", "muon") == 0
    assert "stays as it is: it was trained with another learning_rate and optimizer" in caplog.text
    assert (copy / "backbone.safetensors").read_bytes() == before


def test_a_misspelt_key_is_told(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would exclude nothing."""
    key = next(iter(read_manifest(workplace / "shards" / "digit1").samples))
    (tmp_path / "exclude").write_text(f"{key}\ndigit-none\n")
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    assert fit(copy, "[digit0]", "--data.exclude", str(tmp_path / "exclude")) == 0
    assert caplog.text.count("data.exclude lists keys that no source below") >= 1
    caplog.clear()
    new = ("--data.root", str(tmp_path / "shards"), "--data.sources", "digit0, digit1")
    assert (
        fit(tmp_path / "new", "[]", *new, "--data.exclude", str(tmp_path / "exclude"), "--model.backbone_steps", "1")
        == 0
    )
    assert caplog.text.count("data.exclude lists keys that no source below") == 1, "before anything is learned"
    assert Store.open(tmp_path / "new").sources() == ["digit0", "digit1"], "a space after a comma is no part of a name"
    assert "has: digit-none" in caplog.text
