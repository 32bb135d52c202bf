"""State dicts of the public U-ViT (github.com/baofff/U-ViT): read as data, understood by their names and shapes."""

import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor

from cdm_lightning.errors import BadInput
from cdm_lightning.torch_files import read_torch_file, tensors_by_name

OPTION = "model.backbone.init_args"
LINKED = {"image_size": "data.image_size", "channels": "data.channels"}
PUBLIC_EPSILON = 1e-5  # of PyTorch's LayerNorm, which the public blocks use; timm's use 1e-6
SHOWN = 3


@dataclass(frozen=True)
class Variant:
    """What public U-ViTs differ in beside their sizes; the defaults are those of a backbone that starts afresh.

    Attributes:
        time_mlp: whether two linear layers follow the sinusoidal embedding of the time.
        classes: rows of the label embedding; 0 has no label token.
        final_convolution: whether a 3x3 convolution over the image comes last.
        norm_epsilon: what the blocks' LayerNorms add to the variance.
    """

    time_mlp: bool = True
    classes: int = 0
    final_convolution: bool = True
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.classes < 0:
            raise BadInput(f"{OPTION}.classes is {self.classes}; expected at least 0")
        if not self.norm_epsilon > 0:
            raise BadInput(f"{OPTION}.norm_epsilon is {self.norm_epsilon}; expected a number above 0")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the variant that a public state dict belongs to."""
        labels = tensors.get("label_emb.weight")
        classes = 0 if labels is None or labels.ndim != 2 else len(labels)
        return cls("time_embed.0.weight" in tensors, classes, "final_layer.weight" in tensors, PUBLIC_EPSILON)

    def replaced(self, given: Mapping[str, Any]) -> Self:
        """Return the variant with what is given in the place of its own; None leaves its own."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def differences(self) -> dict[str, Any]:
        """Return what is not as by default."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Variant, name)}


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file (by its suffix), or of a torch file, which is read without running code.

    Raises:
        BadInput: there is no such file, or it holds something else than tensors by name.
    """
    if not Path(path).is_file():
        raise BadInput(f"no file of weights '{path}': give {OPTION}.weights the path of a state dict")
    try:
        tensors = tensors_by_name(_contents(path))
    except Exception as error:  # a damaged file makes its parser fail in any way
        raise _no_state_dict(path) from error
    if not tensors:
        raise _no_state_dict(path)
    return tensors


def check_weights(
    path: str, tensors: Mapping[str, Tensor], init_args: Mapping[str, Any], own: Mapping[str, Tensor]
) -> None:
    """Check that a public state dict is of a network, whose settings and tensors are given.

    Args:
        path: where it lies.
        tensors: the state dict.
        init_args: of the network, as a store keeps them.
        own: the network's tensors, all but those that the public U-ViT does not know.

    Raises:
        BadInput: a setting differs, or a name or shape; what differs is told.
    """
    _check_settings(path, _settings_of(path, tensors), asdict(Variant()) | dict(init_args))
    _check_names(path, tensors, own)
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            found, expected = list(tensors[name].shape), list(tensor.shape)
            raise BadInput(f"'{name}' in {path} has shape {found}; expected {expected}, as in a public U-ViT")


def _check_settings(path: str, found: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    """Raise BadInput that names all settings that differ from those of the weights, with the options that set them."""
    wrong = [name for name in found if found[name] != settings[name]]
    if wrong:
        has = ", ".join(f"{name} {found[name]}" for name in wrong)
        expected = ", ".join(f"{settings[name]} from {LINKED.get(name, f'{OPTION}.{name}')}" for name in wrong)
        raise BadInput(f"the weights in {path} have {has}; expected {expected}: change that, or give other weights")


def _check_names(path: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise BadInput that tells a few of the names that are missing or unknown."""
    for what, names in (("lack", own.keys() - tensors.keys()), ("have unknown", tensors.keys() - own.keys())):
        if names:
            raise BadInput(f"the weights in {path} {what} {_some(names)}: expected those of a public U-ViT")


def _contents(path: str) -> object:
    """Return what a file holds; tensors stay on the disk until they are used, where its format allows it."""
    if path.endswith(".safetensors"):
        return load_file(path)
    return read_torch_file(path, mmap=zipfile.is_zipfile(path))


def _settings_of(path: str, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the settings that a public state dict tells."""
    patches, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if patches is None or patches.ndim != 4 or positions is None or positions.ndim != 3:
        raise BadInput(
            f"the weights in {path} have no 'patch_embed.proj.weight' of 4 dimensions or no 'pos_embed' of 3: "
            "expected those of a public U-ViT"
        )
    variant = Variant.of(tensors)
    width, channels, patch_size = patches.shape[:3]
    image_tokens = max(positions.shape[1] - (2 if variant.classes else 1), 0)
    return {
        "width": width,
        "channels": channels,
        "patch_size": patch_size,
        "image_size": patch_size * math.isqrt(image_tokens),
        "depth": 1 + 2 * len({name.split(".")[1] for name in tensors if name.startswith("in_blocks.")}),
        "time_mlp": variant.time_mlp,
        "classes": variant.classes,
        "final_convolution": variant.final_convolution,
    }


def _some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in ordered[:SHOWN]) + more


def _no_state_dict(path: str) -> BadInput:
    return BadInput(
        f"{path} holds no weights that can be read without running code: expected a state dict, written by "
        "torch.save(model.state_dict(), PATH) or as PATH.safetensors"
    )
