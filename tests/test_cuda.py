"""On a CUDA device everything is what it is on the CPU, to rounding. Where there is none, these tests are skipped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cdm_lightning.cli import main
from cdm_lightning.generation import Settings, sample_batch
from cdm_lightning.line_up import STRATEGIES
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from tests.conftest import Fit
from tests.noted_losses import noted_losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICES = ("cpu", "cuda")
SHORT = ("--n", "6", "--steps", "4")
OF_THE_MACHINE = ("device", "seconds", "memory", "identity", "path", "out", "picture", "csv", "sha256")
COMMANDS = {
    "validate": ("validate", "--sources", "all", *SHORT),
    "evaluate": ("evaluate", "--sources", "all", *SHORT, "--strategies", "closed_form", "routed", "posterior"),
    "classifier": ("evaluate", "--sources", "all", *SHORT, "--strategies", "classifier"),
    "audit": ("audit", "--sources", "all", *SHORT, "--members", "5", "--draws", "2"),
}
UNET = ("--model.backbone", "cdm_lightning.unet.UNet", "--model.backbone.init_args.width", "32")
CONV = ("--model.backbone", "cdm_lightning.conv_net.ConvNet", "--model.backbone.init_args.width", "32")
TRAINED = {  # by what is trained: the kind of compartment, and the backbone if it is no transformer
    **{kind: ("--model.compartment", kind) for kind in ("tokens", "lora", "head", "full")},
    **{f"{kind} of a U-Net": ("--model.compartment", kind, *UNET) for kind in ("tokens", "lora", "full")},
    **{f"{kind} of a ConvNet": ("--model.compartment", kind, *CONV) for kind in ("tokens", "lora", "full")},
    "tokens without a guide": ("--model.compartment", "tokens", "--model.guide", "none"),
    "tokens with images of public": ("--model.compartment", "tokens", "--data.public_mix", "0.2"),
}
METHODS = ("weights", "gaussians", "network", "loo", "shapley")


@pytest.fixture(autouse=True, scope="module")
def exact_products() -> Iterator[None]:
    """Let the device multiply in float32; by default its convolutions round to ten bits of mantissa."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield


def losses(fit: Fit, store: Path, device: str, *options: str) -> list[float]:
    """Return the loss of every step of a fit of `public` and one source on a device."""
    accelerator = "gpu" if device == "cuda" else "cpu"
    short = ("--model.backbone_steps", "6", "--trainer.max_steps", "6", "--trainer.accelerator", accelerator)
    with noted_losses(device) as seen:
        assert fit(store, "[digit0]", *short, *options) == 0
    return [loss for steps in seen.values() for loss in steps]


@pytest.mark.parametrize("labels", ["true", "false"])
@pytest.mark.parametrize("what", TRAINED)
def test_training_is_that_of_the_cpu(what: str, labels: str, fit: Fit, tmp_path: Path) -> None:
    if "public" in what and labels == "true":
        pytest.skip("images of public have no label")
    options = (*TRAINED[what], "--model.class_labels", labels)
    cpu, cuda = (losses(fit, tmp_path / device, device, *options) for device in DEVICES)
    assert len(cpu) == 12
    assert cuda == pytest.approx(cpu, rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("label", [None, "digit3"])
def test_samples_and_weights_are_those_of_the_cpu(strategy: Any, label: str | None, parts: Path) -> None:
    store, found = Store.open(parts), []
    for device in DEVICES:
        settings = Settings(n=6, steps=5, strategy=strategy, label=label, device=device)
        compartments = open_compartments(store, "all", sigma_switch=None, device=device)
        if label is not None:
            compartments = compartments.under(label)
        composed = compartments.composed(strategy)
        found.append(sample_batch(composed, store.info.image_shape, range(6), settings))
    cpu, cuda = found
    assert cuda.images.device.type == "cuda"
    torch.testing.assert_close(cuda.images.cpu(), cpu.images, rtol=1e-3, atol=1e-3)
    assert cuda.drawn == cpu.drawn
    for (sigma, weight), (of_cpu, expected) in zip(cuda.trajectory, cpu.trajectory, strict=True):
        assert sigma == of_cpu
        torch.testing.assert_close(weight.cpu(), expected, rtol=1e-3, atol=1e-3)


def numbers(report: Any, name: str = "") -> dict[str, float]:
    """Return all numbers of a report by where they stand, but for those of the machine."""
    if any(word in name.rsplit("/", 1)[-1] for word in OF_THE_MACHINE):
        return {}
    if isinstance(report, int | float):
        return {name: float(report)}
    items = report.items() if isinstance(report, dict) else enumerate(report) if isinstance(report, list) else ()
    return {key: value for part, inner in items for key, value in numbers(inner, f"{name}/{part}").items()}


def both(command: tuple[str, ...], place: Path, *on_either: str) -> list[dict[str, float]]:
    """Return the numbers that a command reports on the CPU and on the CUDA device."""
    found = []
    for device in DEVICES:
        report = place / f"{device}.json"
        out = ("--out", str(place / device)) if command[0] in ("evaluate", "audit", "restore") else ()
        assert main([*command, *on_either, *out, "--json", str(report), "--device", device]) == 0
        found.append(numbers(json.loads(report.read_text())))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_reports_are_those_of_the_cpu(name: str, store: Path, tmp_path: Path) -> None:
    cpu, cuda = both(COMMANDS[name], tmp_path, "--store", str(store))
    assert len(cpu) > 10
    assert cuda == pytest.approx(cpu, rel=0.02, abs=0.02, nan_ok=True)


@pytest.fixture(scope="module")
def pictures(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of six images."""
    folder = tmp_path_factory.mktemp("pictures")
    where = ("--store", str(store), "--sources", "all", "--out", str(folder))
    assert main(["sample", *where, *SHORT, "--device", "cuda"]) == 0
    (folder / "grid.png").unlink()
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_credits_are_those_of_the_cpu(method: str, store: Path, pictures: Path, tmp_path: Path) -> None:
    given = ("attribute", str(pictures), "--store", str(store), "--sources", "all")
    cpu, cuda = both(given, tmp_path, "--method", method, "--draws", "3", "--steps", "4")
    assert cuda == pytest.approx(cpu, rel=0.01, abs=0.01, nan_ok=True)


@pytest.mark.parametrize("unknown", [("--mask", "left"), ("--sigma", "0.5")])
def test_images_are_restored_as_on_the_cpu(
    unknown: tuple[str, str], store: Path, pictures: Path, tmp_path: Path
) -> None:
    given = ("restore", str(pictures), "--store", str(store), "--sources", "all", "--steps", "4")
    cpu, cuda = both(given, tmp_path, *unknown)
    assert cuda == pytest.approx(cpu, rel=0.01, abs=0.01, nan_ok=True)


def test_the_report_and_the_course_of_a_fit_are_made(store: Path, fit: Fit, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert (
        main(["report", "--store", str(store), "--sources", "all", "--out", str(page), *SHORT, "--device", "cuda"]) == 0
    )
    assert page.stat().st_size > 10_000
    courses = []
    for device, accelerator in (("cpu", "cpu"), ("cuda", "gpu")):
        watched = ("--trainer.logger", "true", "--trainer.accelerator", accelerator, "--sampler.steps", "4")
        assert fit(tmp_path / device, "[digit0, digit1]", *watched) == 0
        courses.append(numbers(json.loads((tmp_path / device / "runs/composed/forgetting.json").read_text())))
    assert courses[1] == pytest.approx(courses[0], rel=0.05, abs=0.05)
