"""The joint classifier. Oracles: the posterior of known Gaussians, by Bayes' rule; equal bytes; composition by hand."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdm_lightning.classifier_training import KNOTS, noised, trained
from cdm_lightning.cli import main
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser, mixture_weights
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import NoisedFeatures
from cdm_lightning.fidelity import sampled_images
from cdm_lightning.generation import Settings
from cdm_lightning.images import from_uint8, to_uint8
from cdm_lightning.joint_classifier import ClassifierEvidence, JointClassifier, JointHead
from cdm_lightning.line_up import contender, default_names, under_classes
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import read_tensors
from tests.conv_backbone import ConvNet
from tests.dummy_extractor import DummyExtractor

CPU = torch.device("cpu")
MEAN = torch.tensor([[0.2, -0.1, 0.0, 0.1], [-0.2, 0.2, 0.1, 0.0], [0.0, 0.0, -0.2, -0.2]])  # of each source
SPREAD = torch.tensor([0.15, 0.2, 0.25])
PRIOR = torch.tensor([0.1, 0.7, 0.2])
N, STEPS = 8, 5
CLASSIFIER = Path("features") / "classifier.safetensors"


def draws(source: int, n: int, seed: int = 0) -> Tensor:
    """Return images of a Gaussian, uint8 [n, 1, 2, 2]."""
    g = torch.Generator().manual_seed(100 * seed + source)
    return to_uint8((MEAN[source] + SPREAD[source] * torch.randn(n, 4, generator=g)).reshape(n, 1, 2, 2))


def seen(x: Tensor, sigma: Tensor) -> NoisedFeatures:
    """Return features in which the log density of a Gaussian is linear."""
    return NoisedFeatures(torch.cat([x.flatten(1), x.flatten(1).square().sum(1, keepdim=True)], 1), sigma)


def analytic(x: Tensor, sigma: Tensor) -> Tensor:
    """Return log p_i(x; sigma) [source, batch], up to a constant."""
    variance = SPREAD[:, None].square() + sigma.square()
    square = (x.flatten(1)[None] - MEAN[:, None]).square().sum(2)
    return -0.5 * (square / variance + 4 * variance.log())


def unseen(level: float, n: int = 500) -> tuple[Tensor, Tensor]:
    x = torch.cat([from_uint8(draws(source, n, seed=1)) for source in range(3)])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    return x + level * noise, torch.full((len(x),), level)


@pytest.fixture(scope="module")
def many() -> Iterator[None]:
    """Train with hardly any ridge, and on many noised images: the limit in which a classifier is Bayes' rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdm_lightning.classifier_training.RIDGE", 3e-5)
        patch.setattr("cdm_lightning.classifier_training.PASSES", 30)
        yield


@cache
def classifier_of(counts: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the logits [source, batch] of a classifier of so many images of each source."""
    whitening, head = trained(seen, [draws(source, n) for source, n in enumerate(counts)], 0, CPU)
    return lambda x, sigma: head.logits(whitening(seen(x, sigma))).T


def error(counts: tuple[int, ...], level: float, prior: Tensor) -> float:
    """Return the mean absolute error of the posterior under PRIOR, over images and sources, if it is given `prior`."""
    x, sigma = unseen(level)
    found = mixture_weights(classifier_of(counts)(x, sigma), prior.log())
    return float((found - mixture_weights(analytic(x, sigma), PRIOR.log())).abs().mean())


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("level", [0.003, 0.1, 0.5, 2.0, 40.0])
def test_the_posterior_of_gaussians_is_the_analytic_one(level: float) -> None:
    assert error((1000, 1000, 1000), level, PRIOR) < 0.03  # measured: 0.004 to 0.021


@pytest.mark.usefixtures("many")
def test_sources_of_unequal_size_leave_no_share_in_the_logits() -> None:
    assert error((1000, 200, 600), 0.1, PRIOR) < 0.03
    assert error((1000, 200, 600), 0.1, torch.ones(3) / 3) > 0.1  # the prior left out


@pytest.mark.usefixtures("many")
def test_where_noise_hides_all_the_posterior_is_the_prior() -> None:
    found = mixture_weights(classifier_of((1000, 200, 600))(*unseen(80.0)), PRIOR.log())
    torch.testing.assert_close(found.mean(1), PRIOR, rtol=0, atol=0.02)


def test_two_sources_of_the_same_images_are_not_told_apart() -> None:
    own = noised(seen, draws(0, 300), 0, 0, CPU)
    head = JointHead.fit([own, own], KNOTS, 1e-3)
    logits = head.logits(own)
    torch.testing.assert_close(logits[:, 0], logits[:, 1], rtol=0, atol=1e-5)


def test_levels_reach_over_all_that_a_sampler_uses() -> None:
    sigma = noised(seen, draws(0, 1), 0, 0, CPU).sigma.sort().values
    assert len(sigma) == 100
    assert 0.002 <= sigma[0] < 0.0025 < 64 < sigma[-1] <= 80
    assert (sigma[1:] / sigma[:-1]).max() < 1.3


# --- as a row


@pytest.fixture(autouse=True, scope="module")
def extractor() -> Iterator[None]:
    """Put an extractor of few features in the place of EfficientNet-Lite0, and measure no memory."""
    dummy = DummyExtractor("effnet-lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdm_lightning.evaluate_command.open_extractor", lambda *_: dummy)
        patch.setattr("cdm_lightning.comparison.peak_memory", lambda *_: None)
        patch.setattr("cdm_lightning.cost.TURNS", 1)
        yield


@pytest.fixture(scope="module")
def evaluated(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation; read it, do not change it."""
    out = tmp_path_factory.mktemp("evaluate") / "out"
    assert evaluate(store, out) == 0
    return out


def evaluate(store: Path, out: Path, sources: str = "all", *options: str) -> int:
    rows = ("--strategies", "[posterior, classifier, classifier@inf]")
    where = ("--store", str(store), "--sources", sources, "--out", str(out))
    return main(["evaluate", *where, *rows, "--n", str(N), "--steps", str(STEPS), *options])


def opened(store: Path) -> Compartments:
    return open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")


def table(out: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((out / "table.json").read_text())["rows"]}


def test_the_row_is_the_composition_with_the_evidence_of_the_classifier(store: Path, evaluated: Path) -> None:
    """At every level: its weights at the closed forms above the switch, and at the network below."""
    parts = opened(store)
    classifier = JointClassifier(evaluated / CLASSIFIER, parts)
    evidence = {source: ClassifierEvidence(classifier, k) for k, source in enumerate(parts)}
    composed = ComposedDenoiser(parts, evidence, parts.prior(), "posterior", parts.sigma_switch)
    expected = sampled_images(composed, (1, 8, 8), Settings(n=N, steps=STEPS))
    found = read_tensors(evaluated / "rows" / "classifier.safetensors")[0]["images"]
    assert torch.equal(found, expected)
    other = read_tensors(evaluated / "rows" / "posterior.safetensors")[0]["images"]
    assert not torch.equal(found, other)


def test_what_it_is_is_told(evaluated: Path) -> None:
    assert "classifier, not exact" in (evaluated / "table.md").read_text()
    rows = table(evaluated)
    assert set(rows) == {"posterior", "classifier", "classifier@inf"}
    assert rows["classifier"]["model"]["classifier_sha256"] == rows["classifier@inf"]["model"]["classifier_sha256"]
    assert "classifier_sha256" not in rows["posterior"]["model"]


def test_it_is_no_default_row(store: Path) -> None:
    assert not {"classifier", "soup"} & set(default_names(Store.open(store), ["digit0", "digit1"], "cpu"))


def test_it_is_trained_once_and_again_in_equal_bytes(
    store: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in [evaluated / CLASSIFIER, evaluated / "table.json"]}
    assert evaluate(store, tmp_path) == 0
    assert (tmp_path / CLASSIFIER).read_bytes() == before[CLASSIFIER.name]
    (tmp_path / CLASSIFIER).write_bytes(b"damaged")
    monkeypatch.setattr("cdm_lightning.comparison.images_of_batches", refuse)
    assert evaluate(store, tmp_path) == 0
    assert (tmp_path / CLASSIFIER).read_bytes() == before[CLASSIFIER.name]
    monkeypatch.setattr("cdm_lightning.classifier_training.trained", refuse)
    assert evaluate(store, tmp_path) == 0


def refuse(*_: object) -> None:
    raise AssertionError("this was computed before")


def test_another_seed_or_source_trains_it_anew(store: Path, tmp_path: Path) -> None:
    hashes = set()
    for sources, seed in (("[digit0, digit1]", "0"), ("[digit0, digit2]", "0"), ("[digit0, digit2]", "1")):
        assert evaluate(store, tmp_path, sources, "--seed", seed) == 0
        hashes.add(table(tmp_path)["classifier"]["model"]["classifier_sha256"])
    assert len(hashes) == 3


def test_a_single_source_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(store, tmp_path, "[digit1]") == 2
    assert "'digit1' is the only one: choose more --sources" in capsys.readouterr().err
    assert not (tmp_path / CLASSIFIER).exists()


def test_a_backbone_without_features_is_refused(store: Path) -> None:
    parts = opened(store)
    parts.backbone = ConvNet(8, 1, guided=True)
    with pytest.raises(BadInput, match="a ConvNet has no method `features`"):
        JointClassifier(Path("none"), parts)


def test_a_label_is_refused(store: Path, evaluated: Path) -> None:
    evidence = ClassifierEvidence(JointClassifier(evaluated / CLASSIFIER, opened(store)), 0)
    with pytest.raises(BadInput, match="class-blind"):
        evidence.log_density(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1))


def test_classes_are_refused(store: Path) -> None:
    one = contender(Store.open(store), ["digit0", "digit1"], "classifier", Path("none"))
    with pytest.raises(BadInput, match="the row 'classifier' knows no classes"):
        under_classes(one, {"0": 3})
