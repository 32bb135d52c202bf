"""Metrics. Oracles: closed forms of Gaussians, numpy, slow references, limits, torch-fidelity on saved images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from cdm_lightning.errors import BadInput
from cdm_lightning.feature_sums import FeatureSums
from cdm_lightning.images import encode_png
from cdm_lightning.metrics import frechet_distance, kid, kid_subset_size, precision_recall, scores
from tests.dummy_extractor import DIMENSION, DummyExtractor, pictures

REGISTERED = "cdm-dummy"


def normal(n: int, dimension: int = 6, seed: int = 0, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))


def sums_of_law(mean: Tensor, covariance: Tensor, n: int = 50) -> FeatureSums:
    """Return the sums of n features that have exactly this mean and unbiased covariance."""
    return FeatureSums(n, n * mean, (n - 1) * covariance + n * torch.outer(mean, mean))


def covariance_of(eigenvalues: list[float], basis: Tensor) -> Tensor:
    return basis @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ basis.T


# --- sums


@pytest.mark.parametrize("cut", [0, 1, 13, 40])
def test_the_sums_of_parts_are_those_of_the_whole(cut: int) -> None:
    features = normal(40)
    parts, whole = FeatureSums.of(features[:cut]) + FeatureSums.of(features[cut:]), FeatureSums.of(features)
    assert parts.n == whole.n == 40
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.outer, whole.outer, rtol=1e-12, atol=1e-12)


def test_mean_and_covariance_are_numpys() -> None:
    features = normal(30, mean=5.0)
    exact, sums = features.double().numpy(), FeatureSums.of(features)
    np.testing.assert_allclose(sums.mean().numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sums.covariance().numpy(), np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-12)


# --- Frechet distance


def test_the_frechet_distance_of_laws_with_common_axes() -> None:
    """Closed form: |m_1 - m_2|^2 + sum (sqrt(a) - sqrt(b))^2."""
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    zero, mean = torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    one = sums_of_law(mean, covariance_of([1, 4, 9, 16], basis))
    other = sums_of_law(zero, covariance_of([4, 1, 9, 25], basis), n=70)
    assert frechet_distance(one, other) == pytest.approx(6 + 1 + 1 + 0 + 1, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(9, rel=1e-9)


def test_the_frechet_distance_of_laws_with_other_axes() -> None:
    """Closed form in two dimensions: tr (AB)^(1/2) = sqrt(tr(AB) + 2 sqrt(det(AB)))."""
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.4], [-0.4, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    root = ((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * root)
    assert frechet_distance(sums_of_law(zero, a), sums_of_law(zero, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 200])
def test_the_frechet_distance_to_itself_is_zero(n: int) -> None:
    sums = FeatureSums.of(normal(n, dimension=32))
    assert abs(frechet_distance(sums, sums)) < 1e-6 * float(sums.covariance().trace())


# --- KID


def mmd2_of_shifted_normals(mean: float) -> float:
    """Closed form in one dimension: E (x y + 1)^3 in the moments of N(0, 1) and N(mean, 1)."""

    def kernel(p: tuple[float, float, float], q: tuple[float, float, float]) -> float:
        return p[2] * q[2] + 3 * p[1] * q[1] + 3 * p[0] * q[0] + 1

    one, other = (0.0, 1.0, 0.0), (mean, mean**2 + 1, mean**3 + 3 * mean)
    return kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_kid_is_unbiased_for_20_images(mean: float) -> None:
    draws = [kid(normal(20, 1, 2 * k), normal(20, 1, 2 * k + 1, mean), seed=k)[0] for k in range(200)]
    error = np.std(draws) / len(draws) ** 0.5
    assert abs(np.mean(draws) - mmd2_of_shifted_normals(mean)) < 4 * error
    assert mmd2_of_shifted_normals(mean) > 5 * error or mean == 0


def test_the_deviation_of_kid_is_its_standard_error() -> None:
    """Oracle: the deviation of KID over independent draws of both sides."""
    found = [kid(normal(60, 3, 2 * k), normal(60, 3, 2 * k + 1, 1.0), seed=k) for k in range(60)]
    values, deviations = zip(*found, strict=True)
    assert np.mean(deviations) == pytest.approx(np.std(values), rel=0.3)


@pytest.mark.parametrize(
    ("generated", "reference", "size"),
    [(5000, 3000, 1000), (20, 20, 10), (5000, 21, 10), (20, 5000, 10), (3, 9, 2), (2, 2, 2)],
)
def test_the_subset_size_of_kid_adapts(generated: int, reference: int, size: int) -> None:
    assert kid_subset_size(generated, reference) == size


# --- precision and recall


def share_inside(points: Tensor, centres: Tensor, neighbours: int = 3) -> float:
    """Slow reference: the share of points that lie in any centre's ball."""
    inside = 0
    for point in points:
        for centre in centres:
            radius = sorted(float((centre - other).norm()) for other in centres)[neighbours]
            if float((point - centre).norm()) <= radius:
                inside += 1
                break
    return inside / len(points)


def test_precision_and_recall_are_those_of_the_slow_reference() -> None:
    generated, reference = normal(17, 2, 0), 1.5 * normal(23, 2, 1, 0.4)
    expected = share_inside(generated, reference), share_inside(reference, generated)
    assert precision_recall(generated, reference) == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_the_limits_of_precision_and_recall() -> None:
    features = normal(30)
    assert precision_recall(features, features) == (1.0, 1.0)
    assert precision_recall(features, features + 1000) == (0.0, 0.0)


def test_a_narrow_sample_is_precise_and_recalls_little() -> None:
    broad = normal(200, 2)
    precision, recall = precision_recall(broad[:1] + 0.001 * normal(50, 2, 1), broad)
    assert precision == 1.0
    assert recall < 0.1


# --- all of them


class Registered(FeatureExtractorBase):
    """The dummy extractor in torch-fidelity's form."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (DummyExtractor()(images),)


def saved(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        (folder / f"{k:05}.png").write_bytes(encode_png(image))
    return folder


def test_every_number_is_that_of_torch_fidelity_on_the_saved_images(tmp_path: Path) -> None:
    if REGISTERED not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(REGISTERED, Registered)
    generated, reference = pictures(60, 0), pictures(90, 1)
    expected = torch_fidelity.calculate_metrics(
        input1=str(saved(generated, tmp_path / "generated")),
        input2=str(saved(reference, tmp_path / "reference")),
        feature_extractor=REGISTERED,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=kid_subset_size(60, 90),
        rng_seed=7,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    features = DummyExtractor()(reference)
    found = scores(DummyExtractor()(generated), features, FeatureSums.of(features), "dummy", seed=7)
    assert found == pytest.approx(
        {
            "frechet@60_dummy": expected["frechet_inception_distance"],
            "kid@60_dummy": expected["kernel_inception_distance_mean"],
            "kid_deviation@60_dummy": expected["kernel_inception_distance_std"],
            "precision@60_dummy": expected["precision"],
            "recall@60_dummy": expected["recall"],
        },
        rel=1e-6,
    )
    assert min(found.values()) > 0
    assert found["precision@60_dummy"] != found["recall@60_dummy"]


def test_only_inceptions_frechet_distance_is_called_fid() -> None:
    features = normal(12, DIMENSION)
    sums = FeatureSums.of(features)
    assert set(scores(features[:9], features, sums, "inception", 0)) == {
        "fid@9_inception",
        "kid@9_inception",
        "kid_deviation@9_inception",
        "precision@9_inception",
        "recall@9_inception",
    }
    assert "frechet@9_effnet-lite0" in scores(features[:9], features, sums, "effnet-lite0", 0)


@pytest.mark.parametrize(("generated", "reference"), [(2, 2), (2, 20), (3, 5)])
def test_a_few_images_are_enough(generated: int, reference: int) -> None:
    features = normal(reference)
    values = scores(normal(generated, seed=1), features, FeatureSums.of(features), "dummy", 0).values()
    assert np.isfinite(list(values)).all()


@pytest.mark.parametrize(("generated", "reference"), [(1, 20), (20, 1), (20, 0)])
def test_a_single_image_is_refused(generated: int, reference: int) -> None:
    one, other = normal(generated), normal(reference)
    sentence = f"at least 2 held-out images, but there are {generated} and {reference}: sample more"
    for refused in (
        lambda: scores(one, other, FeatureSums.of(other), "dummy", 0),
        lambda: frechet_distance(FeatureSums.of(one), FeatureSums.of(other)),
        lambda: kid(one, other, 0),
        lambda: precision_recall(one, other),
    ):
        with pytest.raises(BadInput, match=sentence):
            refused()


def test_metrics_are_silent_and_leave_global_random_numbers_alone(capfd: pytest.CaptureFixture[str]) -> None:
    features = normal(12)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first = scores(features, features, FeatureSums.of(features), "dummy", 0)
    assert first == scores(features, features, FeatureSums.of(features), "dummy", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)
    assert capfd.readouterr() == ("", "")
