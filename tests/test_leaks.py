"""How sources could leak into one another: every guard holds, and each check fails once its guard is broken on purpose.

`test_guard_holds` runs the check of every row; `test_check_can_fail` runs it again with the guard broken. Bytes of all
kinds of compartment over 200 steps are compared in test_isolation.py.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, WeightAveraging
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from callbacks.sample_grid import SampleGrid
from cdm_lightning import gaussians, trainer_checks
from cdm_lightning.backbone import freeze, tensors_sha256
from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.ema import EMA
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.phase import Phase
from cdm_lightning.run_sources import NEXT, SOURCES
from cdm_lightning.store import Store
from datamodules import writer
from datamodules.encoding import Encoded
from datamodules.manifest import Sample
from datamodules.stream import SourceStream
from tests.conftest import Fit
from tests.conv_backbone import ConvNet

TOKENS = ("--model.compartment", "tokens", "--model.tokens", "2", "--trainer.max_steps", "6")
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Place:
    """A store with three compartments, room for copies, and the fit of the tiny configuration."""

    store: Path
    fit: Fit
    workplace: Path
    room: Path

    def copy(self, name: str) -> Path:
        """Return a copy of the store's backbone alone."""
        place = self.room / name
        place.mkdir()
        for file in ("store.json", "backbone.safetensors"):
            shutil.copy(self.store / file, place / file)
        return place

    def bytes_of(self, name: str, sources: str, *options: str, of: str = "digit2") -> bytes:
        """Fit sources into a copy of the backbone, and return the bytes of one compartment."""
        place = self.copy(name)
        assert self.fit(place, sources, *TOKENS, *options) == 0
        return (place / "compartments" / of / "compartment.safetensors").read_bytes()

    def recipe(self, *options: str) -> ConfiguredRecipe:
        parser = fit_parser()
        where = ["--config", str(self.workplace / "tiny.yaml"), "--data.root", str(self.workplace / "shards")]
        return ConfiguredRecipe(parser, parser.parse_args([*where, *options]))

    def module(self, source: str) -> CompartmentalizedDiffusion:
        """Return a module that is about to train a source's prompt."""
        module = self.recipe(*TOKENS).module()
        backbone, public = unpack_backbone(*Store.open(self.store).read_backbone())
        module.backbone.load_state_dict(backbone.state_dict())
        untrained = Compartment(1, public.closed_form, public.closed_form)
        module.begin_source(Phase("source", source, 1, 1), public, None, untrained)  # type: ignore[arg-type]
        module._trainer = SimpleNamespace(max_steps=6)  # type: ignore[assignment]
        return module


@pytest.fixture
def place(store: Path, fit: Fit, workplace: Path, tmp_path: Path) -> Place:
    return Place(store, fit, workplace, tmp_path)


def check_backbone_is_frozen(place: Place) -> None:
    module = place.module("digit2")
    before = tensors_sha256(module.backbone)
    module.train()
    assert not any(part.training for part in module.backbone.modules())
    assert not any(parameter.requires_grad for parameter in module.backbone.parameters())
    assert place.bytes_of("frozen", "[digit2]")
    stored = unpack_backbone(*Store.open(place.room / "frozen").read_backbone())[0]
    assert tensors_sha256(stored) == before


def break_backbone_is_frozen(patch: Patch) -> None:
    patch.setattr("cdm_lightning.module.freeze", lambda backbone: backbone.eval())


def check_batch_norm_is_refused(place: Place) -> None:
    network = ConvNet(8, 1, guided=True)
    network.enter = nn.Sequential(network.enter, nn.BatchNorm2d(8))  # type: ignore[assignment]
    with pytest.raises(BadInput, match="'enter.1' is a BatchNorm, whose statistics"):
        freeze(network)


def break_batch_norm_is_refused(patch: Patch) -> None:
    patch.setattr("torch.nn.modules.batchnorm._BatchNorm", nn.Bilinear)


def check_one_trainer_per_source(place: Place) -> None:
    """The clipping norm, the schedule and the optimizer's state of one source do not reach the next."""
    assert place.bytes_of("alone", "[digit2]") == place.bytes_of("in company", "[digit0, digit1, digit2]")


def break_one_trainer_per_source(patch: Patch) -> None:
    """Keep one optimizer for all sources."""
    original, kept = CompartmentalizedDiffusion.configure_optimizers, []

    def shared(module: CompartmentalizedDiffusion) -> object:
        made = original(module)
        if kept:
            old = kept[0]["optimizer"]
            for new, used in zip(made["optimizer"].param_groups, old.param_groups, strict=True):  # type: ignore[index, call-overload]
                states = [old.state[parameter] for parameter in used["params"]]
                made["optimizer"].state.update(zip(new["params"], states, strict=True))  # type: ignore[index, call-overload]
        kept[:] = [made]
        return made

    patch.setattr(CompartmentalizedDiffusion, "configure_optimizers", shared)


def check_coupling_options_are_refused(place: Place) -> None:
    for option, value in (("max_time", "00:00:01:00"), ("precision", "16-mixed")):
        with pytest.raises(BadInput, match=f"trainer.{option}.* is refused: "):
            place.recipe(f"--trainer.{option}", value)
    for callback in (EarlyStopping("loss"), Timer("00:00:01:00"), ModelCheckpoint(monitor="fid"), WeightAveraging()):
        with pytest.raises(BadInput, match=f"{type(callback).__name__} .*is refused: "):
            trainer_checks.check_callback(callback)


def break_coupling_options_are_refused(patch: Patch) -> None:
    patch.setattr(trainer_checks, "REFUSED_CALLBACKS", {})


def check_epochs_are_the_sources_own(place: Place) -> None:
    """How often and in which order a source's images are seen does not depend on the length of another source."""
    seen: dict[str, list[str]] = {}
    original = CompartmentalizedDiffusion.training_step

    def noting(module: CompartmentalizedDiffusion, batch: dict[str, list[str]], batch_idx: int) -> Tensor:
        seen.setdefault(f"{name} {module.phase.source}", []).extend(batch["key"])
        return original(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompartmentalizedDiffusion, "training_step", noting)
        for name, sources in (("alone", "[digit2]"), ("together", "[digit0, digit2]")):
            place.bytes_of(name, sources)
    assert seen["alone digit2"] == seen["together digit2"]
    assert len(seen["alone digit2"]) == 6 * 16, "as many steps as were asked for, of 16 images"


def break_epochs_are_the_sources_own(patch: Patch) -> None:
    """One position for all sources: each is begun where the one before stopped."""
    original, streamed = SourceStream.__iter__, []

    def going_on(stream: SourceStream) -> Iterator[object]:
        position = sum(streamed) // stream.batch_size
        streamed.append(len(stream.used))
        return islice(original(stream), position, None)

    patch.setattr(SourceStream, "__iter__", going_on)


def check_random_numbers_are_the_sources_own(place: Place) -> None:
    torch.manual_seed(5)
    alone = place.bytes_of("alone", "[digit2]")
    torch.manual_seed(6)
    assert place.bytes_of("after another", "[digit0, digit2]") == alone


def break_random_numbers_are_the_sources_own(patch: Patch) -> None:
    patch.setattr("cdm_lightning.module.generator", lambda *_: torch.default_generator)


def check_validation_moves_no_random_stream(place: Place) -> None:
    torch.manual_seed(5)
    logged = ("--trainer.logger", "true")
    place.bytes_of("first", "[digit0]", *logged, of="digit0")
    state = torch.random.get_rng_state()
    alone = place.bytes_of("second", "[digit2]", *logged)
    torch.random.set_rng_state(state)
    assert place.bytes_of("both", "[digit0, digit2]", *logged) == alone


def break_validation_moves_no_random_stream(patch: Patch) -> None:
    """One stream for training and validation."""
    shared = torch.Generator().manual_seed(0)
    patch.setattr("cdm_lightning.module.generator", lambda *_: shared)
    original = SampleGrid.on_validation_end

    def drawing(callback: SampleGrid, *arguments: object) -> None:
        torch.rand(1, generator=shared)
        original(callback, *arguments)  # type: ignore[arg-type]

    patch.setattr(SampleGrid, "on_validation_end", drawing)


def check_a_prompt_has_parameters_of_its_own(place: Place) -> None:
    module, others = place.module("digit2"), place.module("digit0")
    other = others.prompts.find("digit0")
    assert other is not None
    module.prompts.put("digit0", other)
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = module.prompts.find("digit2")
    assert own is not None
    assert trained == {id(parameter) for parameter in own.parameters()}
    assert not {parameter.data_ptr() for parameter in own.parameters()} & {p.data_ptr() for p in other.parameters()}


def break_a_prompt_has_parameters_of_its_own(patch: Patch) -> None:
    patch.setattr(CompartmentalizedDiffusion, "trained", property(lambda module: module.prompts))


def check_the_average_is_of_what_is_trained(place: Place) -> None:
    module = place.module("digit2")
    assert module.ema is not None
    assert sum(buffer.numel() for buffer in module.ema.buffers()) - 1 == module.trained.count  # type: ignore[operator]
    place.bytes_of("averaged", "[digit2]")


def break_the_average_is_of_what_is_trained(patch: Patch) -> None:
    """Average all parameters, frozen ones too, as Lightning's own callback does."""

    def begin(module: CompartmentalizedDiffusion, *arguments: object) -> None:
        original(module, *arguments)  # type: ignore[arg-type]
        module.ema = EMA(nn.ModuleList([module.backbone, module.prompts]), 0.9)

    original = CompartmentalizedDiffusion.begin_source
    patch.setattr(CompartmentalizedDiffusion, "begin_source", begin)


def noised() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 2.0, 20.0])


def opened(place: Place, *sources: str) -> Compartments:
    return open_compartments(Store.open(place.store), list(sources), sigma_switch=None, device="cpu")


def check_evidence_is_of_one_compartment(place: Place) -> None:
    alone, together = opened(place, "digit2").evidence(), opened(place, "digit0", "digit1", "digit2").evidence()
    assert torch.equal(alone["digit2"].log_density(*noised()), together["digit2"].log_density(*noised()))


def break_evidence_is_of_one_compartment(patch: Patch) -> None:
    """A joint classifier: what it says of one source has seen the others."""
    original = Compartments.evidence

    def joint(compartments: Compartments) -> dict[str, object]:
        own = original(compartments)

        def log_density(source: str, x: Tensor, sigma: Tensor) -> Tensor:
            return torch.stack([part.log_density(x, sigma) for part in own.values()]).log_softmax(0)[
                list(own).index(source)
            ]

        return {s: SimpleNamespace(log_density=lambda x, sigma, s=s: log_density(s, x, sigma)) for s in own}

    patch.setattr(Compartments, "evidence", joint)


def check_calibration_is_that_of_public(place: Place) -> None:
    public = unpack_backbone(*Store.open(place.store).read_backbone())[1]
    for sources in (["digit2"], ["digit0", "digit1", "digit2"]):
        compartments = opened(place, *sources)
        assert compartments.sigma_switch == public.sigma_switch
        for evidence in compartments.evidence().values():
            assert torch.equal(evidence.calibration.temperature, public.calibration.temperature)
            assert evidence.calibration.floor == public.calibration.floor


def break_calibration_is_that_of_public(patch: Patch) -> None:
    """Temper by how many sources there are."""
    original = Compartments.evidence

    def tempered(compartments: Compartments) -> dict[str, GaussianEvidence]:
        grid = torch.ones(1)
        own = Calibration(grid, grid * len(compartments), 0.01)
        return {source: replace(part, calibration=own) for source, part in original(compartments).items()}

    patch.setattr(Compartments, "evidence", tempered)


def check_changed_public_is_refused(place: Place) -> None:
    place.copy("store")
    exclude = place.room / "excluded.txt"
    manifest = json.loads((place.workplace / "shards" / "public" / "manifest.json").read_text())
    exclude.write_text(next(key for key, sample in sorted(manifest["samples"].items()) if sample["part"] == "train"))
    assert place.fit(place.room / "store", "[digit2]", "--data.exclude", str(exclude)) == 2


def break_changed_public_is_refused(patch: Patch) -> None:
    patch.setattr("cdm_lightning.fitting.check_backbone", lambda *_: None)


def encoded(content: str) -> Encoded:
    return Encoded(b"", Sample(content, "x", "train"), "")


def check_no_image_is_public_and_owned(place: Place) -> None:
    shards = {
        "public": {"a": encoded("1"), "b": encoded("2")},
        "owner": {"c": encoded("2"), "d": encoded("3")},
    }
    apart = writer.drop_shared(shards, False)
    assert {source: set(samples) for source, samples in apart.items()} == {"public": {"a", "b"}, "owner": {"d"}}


def break_no_image_is_public_and_owned(patch: Patch) -> None:
    patch.setattr("datamodules.writer.drop_shared", lambda sources, drop_from_public: sources)


def check_k_means_has_one_thread(place: Place) -> None:
    """Asked of the thread pools while k-means runs; 20 repeats with OMP_NUM_THREADS=4 are in test_gaussians.py."""
    seen: list[int] = []

    class Watched(gaussians.KMeans):  # type: ignore[misc, name-defined]
        def fit_predict(self, flat: object) -> object:
            seen.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit_predict(flat)

    with pytest.MonkeyPatch.context() as patch, threadpool_limits(2):
        patch.setattr(gaussians, "KMeans", Watched)
        gaussians.Gaussians.fit(torch.rand(500, 1, 4, 4), seed=0, rank=4)
    assert set(seen) == {1}


def break_k_means_has_one_thread(patch: Patch) -> None:
    patch.setattr(gaussians, "threadpool_limits", lambda _: contextlib.nullcontext())


def check_traces_are_kept_per_source_or_named(place: Place) -> None:
    """Logs, configs and checkpoints of one source do not change with its company; what is composed says of whom."""
    options = (*TOKENS, "--trainer.logger", "true")
    store = place.copy("traces")
    assert place.fit(store, "[digit0, digit2]", *options) == 0
    for source, other in (("digit0", "digit2"), ("digit2", "digit0")):
        folder = store / "runs" / "sources" / source
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"config.yaml", "seconds.json"} <= {path.name for path in files}
        assert not [path for path in files if other.encode() in path.read_bytes()]
    noted = json.loads((store / "runs" / "composed" / SOURCES).read_text())
    assert noted[NEXT] == ["digit0", "digit2"]
    assert not list(store.rglob("*.ckpt"))


def break_traces_are_kept_per_source_or_named(patch: Patch) -> None:
    """Save the configuration as it was given, with the list of sources."""

    def careless(recipe: ConfiguredRecipe, phase: Phase, file: Path) -> None:
        recipe.parser.save(recipe.config, file, overwrite=True)

    patch.setattr(ConfiguredRecipe, "save_config", careless)


ROWS = [name.removeprefix("check_") for name in list(globals()) if name.startswith("check_")]


def row(kind: str, name: str) -> Callable[..., None]:
    found: Callable[..., None] = globals()[f"{kind}_{name}"]
    return found


@pytest.fixture(autouse=True)
def global_random_state() -> Iterator[None]:
    """Leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("name", ROWS)
def test_guard_holds(name: str, place: Place) -> None:
    row("check", name)(place)


@pytest.mark.parametrize("name", ROWS)
def test_check_can_fail(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    row("break", name)(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        row("check", name)(place)
