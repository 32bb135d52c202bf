"""A store on weights of the public U-ViT. Oracles: its forward pass (tests/public_uvit.py), and Karras et al. 2022."""

import math
from pathlib import Path

import pytest
import torch

from cdm_lightning.denoiser import linear_time
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.phase import Phase
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import file_sha256
from tests.conftest import Fit
from tests.public_uvit import public_forward, public_state_dict
from tests.test_public_weights import close, generator, inputs, loaded, saved

PUBLIC = ("--model.guide", "none", "--model.preconditioning", "vp", "--model.backbone_steps", "0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights with a label embedding and without a network for the time."""
    path = tmp_path_factory.mktemp("weights") / "secret_place.pth"
    saved(public_state_dict(classes=5), path)
    return path


@pytest.fixture(scope="module")
def public_store(fit: Fit, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store on these weights as they are; read it, do not change it."""
    path = tmp_path_factory.mktemp("public") / "store"
    tokens = ("--model.compartment", "tokens", "--model.tokens", "2", "--trainer.max_steps", "2")
    assert fit(path, "[digit0]", *PUBLIC, *tokens, "--model.backbone.weights", str(weights)) == 0
    assert fit(path, "[digit1]", *PUBLIC, "--model.backbone.weights", str(weights)) == 0
    return path


@torch.inference_mode()
def test_untrained_weights_are_stored_as_they_are_with_their_hash_and_without_their_path(
    public_store: Path, weights: Path
) -> None:
    store = Store.open(public_store)
    backbone = unpack_backbone(*store.read_backbone())[0]
    x, time = inputs()
    close(backbone(x, time), public_forward(torch.load(weights, weights_only=True), x, time, torch.tensor([4, 4, 4])))
    noted = store.read_backbone()[1]
    assert noted["backbone"]["weights_sha256"] == file_sha256(weights)
    assert (noted["steps"], noted["preconditioning"]) == (0, "vp")
    kept = [path for path in public_store.rglob("*") if path.is_file() and "runs" not in path.parts]
    assert not [path for path in kept if b"secret_place" in path.read_bytes()]


@torch.inference_mode()
def test_below_the_switch_a_source_denoises_by_the_predicted_noise(public_store: Path, weights: Path) -> None:
    """D = x - sigma eps(x / sqrt(1 + sigma^2), 999 t), with sigma(t)^2 = exp(9.95 t^2 + 0.1 t) - 1."""
    compartments = open_compartments(Store.open(public_store), "all", sigma_switch=None, device="cpu")
    tensors = torch.load(weights, weights_only=True)
    times = [0.02, 0.1, 0.25]
    sigma = torch.tensor([math.sqrt(math.expm1(9.95 * t**2 + 0.1 * t)) for t in times], dtype=torch.float64)
    assert sigma.max() < compartments.sigma_switch
    level = sigma[:, None, None, None]
    x = torch.randn(3, 1, 8, 8, generator=generator(4), dtype=torch.float64) * (1 + level**2).sqrt()
    prompt = compartments.compartments["digit0"].prompt
    assert prompt is not None
    deep = prompt.get_parameter("tokens")[None].expand(3, -1, -1, -1)
    for source, tokens in (("digit0", deep), ("digit1", None)):
        time = 999 * torch.tensor(times, dtype=torch.float64)
        noise = public_forward(tensors, x / (1 + level**2).sqrt(), time, torch.tensor([4, 4, 4]), tokens)
        found = compartments[source](x.float(), sigma.float())
        torch.testing.assert_close(found.double(), x - level * noise, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_training_and_validation_denoise_by_the_predicted_noise_too(public_store: Path, weights: Path) -> None:
    """In training, in units of sigma: the loss is the error of the noise."""
    network = loaded(str(weights))
    module = CompartmentalizedDiffusion(network, guide="none", preconditioning="vp", backbone_steps=0)
    module.phase = Phase("backbone", "public", 1, 1)
    (x, time), label = inputs(), torch.tensor([4, 4, 4])
    sigma = (9.95 * (time / 999) ** 2 + 0.1 * (time / 999)).expm1().sqrt().clamp_min(1e-3)
    level = sigma[:, None, None, None]
    noise = public_forward(torch.load(weights, weights_only=True), x, linear_time(sigma), label)
    noised = x * (1 + level**2).sqrt()
    denoised, scale = module.denoise_in_training({"label": ["a", "b", "c"]}, noised, sigma, generator(0))
    torch.testing.assert_close(denoised.double(), noised - level * noise, rtol=1e-4, atol=1e-4)
    assert torch.equal(scale.abs(), sigma)
    opened = open_compartments(Store.open(public_store), "all", sigma_switch=None, device="cpu")
    module.begin_composed(Phase("composed", "digit1", 1, 1), opened.public, opened.compartments)
    below = torch.full((3,), 0.2)
    assert torch.equal(module.denoisers()["digit1"](x, below), opened["digit1"](x, below))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.preconditioning", "edm"), "its preconditioning is vp, the configuration says None"),
        (("--model.preconditioning", "vp_scaled_linear"), "its preconditioning is vp, the configuration says vp_s"),
        (("--model.backbone_steps", "1"), "its steps is 0, the configuration says 1"),
        (("--model.backbone.classes", "6"), "have classes 5; expected 6 from model.backbone.init_args.classes"),
        (("--model.backbone.width", "8"), "have width 16; expected 8 from model.backbone.init_args.width"),
        (("--model.backbone.weights", "no.pth"), "no file of weights 'no.pth'"),
        (
            ("--model.guide", "closed_form"),
            "model.backbone_steps is 0; expected at least 1, or 0 with model.guide none",
        ),
        (("--model.backbone.weights", "null"), "model.backbone_steps is 0; expected at least 1, or 0 with model.guide"),
    ],
)
def test_another_backbone_than_the_stores_is_refused(
    options: tuple[str, ...],
    said: str,
    public_store: Path,
    weights: Path,
    fit: Fit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = (*PUBLIC, "--model.backbone.weights", str(weights))
    assert fit(public_store, "[digit2]", *given, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert Store.open(public_store).sources() == ["digit0", "digit1"]


def test_other_weights_of_the_same_network_are_another_backbone(
    public_store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(public_state_dict(classes=5, seed=1), tmp_path / "other.pth")
    assert fit(public_store, "[digit2]", *PUBLIC, "--model.backbone.weights", other) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds another backbone: its backbone.weights_sha256 is" in line
    assert file_sha256(Path(other)) in line


def test_the_guided_backbone_trains_on_from_them(fit: Fit, weights: Path, tmp_path: Path) -> None:
    guided = ("--model.preconditioning", "vp", "--model.backbone_steps", "2", "--model.learning_rate", "1e-6")
    assert fit(tmp_path / "store", "[digit0]", *guided, "--model.backbone.weights", str(weights)) == 0
    backbone = unpack_backbone(*Store.open(tmp_path / "store").read_backbone())[0]
    own, tensors = backbone.state_dict(), torch.load(weights, weights_only=True)
    moved = {name: float((own[name] - tensor).abs().max()) for name, tensor in tensors.items()}
    assert max(moved.values()) < 1e-5
    assert moved["decoder_pred.weight"] > 0
    assert 0 < float(own["guide_embed.proj.weight"].abs().max()) < 1e-5
