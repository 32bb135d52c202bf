"""Weights of the public U-ViT. Oracle: its forward pass, written anew over plain tensors (tests/public_uvit.py)."""

import itertools
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdm_lightning.backbone import UViT, tensors_sha256
from cdm_lightning.errors import BadInput
from cdm_lightning.public_weights import read_state_dict
from tests.public_uvit import HEADS, public_forward, public_state_dict

VARIANTS = [
    {"time_mlp": time_mlp, "classes": classes, "conv": conv}
    for time_mlp, classes, conv in itertools.product((False, True), (0, 5), (False, True))
]
SIZES = {"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 3, "heads": HEADS}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def saved(tensors: dict[str, Tensor], path: Path) -> str:
    """Return the path of a file that holds these tensors, in the format that its suffix names."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(OrderedDict(tensors), path)
    return str(path)


def loaded(path: str, guided: bool = False, **sizes: Any) -> UViT:
    """Return the network that starts from a file."""
    network = UViT(**(SIZES | sizes), guided=guided, weights=path)
    network.initialize(generator(7))
    return network.eval()


def inputs(batch: int = 3, channels: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, channels, 8, 8, generator=generator(1)), torch.tensor([0.0, 417.3, 999.0])[:batch]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_network_gives_the_public_outputs(variant: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    tensors = public_state_dict(**variant, channels=3, depth=5, patch_size=2)
    network = loaded(saved(tensors, tmp_path / f"w{suffix}"), channels=3, depth=5, patch_size=2)
    x, time = inputs(channels=3)
    label = torch.tensor([4, 4, 4]) if variant["classes"] else None
    close(network(x, time), public_forward(tensors, x, time, label))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


@torch.inference_mode()
def test_a_label_is_asked_for_and_the_last_one_is_no_label(tmp_path: Path) -> None:
    tensors = public_state_dict(classes=5)
    network, (x, time) = loaded(saved(tensors, tmp_path / "w.pth")), inputs()
    label = torch.tensor([3, 0, 4])
    close(network(x, time, label=label), public_forward(tensors, x, time, label))
    assert (network(x, time, label=label) - network(x, time))[:2].abs().max() > 1e-2


@pytest.mark.parametrize("classes", [0, 5])
@torch.inference_mode()
def test_prompt_tokens_come_last_and_are_dropped_after_each_block(classes: int, tmp_path: Path) -> None:
    tensors = public_state_dict(classes=classes)
    network, (x, time) = loaded(saved(tensors, tmp_path / "w.pth")), inputs()
    prompt = torch.randn(3, 3, 2, 16, generator=generator(3))
    label = torch.full((3,), 4) if classes else None
    close(network(x, time, prompt=prompt), public_forward(tensors, x, time, label, prompt))
    assert (network(x, time, prompt=prompt) - network(x, time)).abs().max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_guided_network_starts_from_them_and_its_guide_has_no_influence_yet(
    variant: dict[str, Any], tmp_path: Path
) -> None:
    tensors = public_state_dict(**variant)
    network, (x, time) = loaded(saved(tensors, tmp_path / "w.pth"), guided=True), inputs()
    label = torch.tensor([4, 4, 4]) if variant["classes"] else None
    for seed in range(2):
        guide = torch.randn(3, 2, 8, 8, generator=generator(seed))
        close(network(x, time, guide=guide), public_forward(tensors, x, time, label))
    own = network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    assert not own["guide_embed.proj.weight"].any()
    assert own["guide_head.enter.weight"].any(), "the guide can be learned"


def test_the_start_depends_on_weights_and_generator_alone(tmp_path: Path) -> None:
    path = saved(public_state_dict(), tmp_path / "w.pth")
    assert tensors_sha256(loaded(path, guided=True)) == tensors_sha256(loaded(path, guided=True))
    assert tensors_sha256(loaded(path)) != tensors_sha256(
        loaded(saved(public_state_dict(seed=1), tmp_path / "other.pth"))
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_constructor_arguments_rebuild_the_network_without_the_file(variant: dict[str, Any], tmp_path: Path) -> None:
    network = loaded(saved(public_state_dict(**variant), tmp_path / "w.pth"))
    assert str(tmp_path) not in json.dumps(network.init_args)
    again = UViT(**network.init_args)
    again.load_state_dict(network.state_dict())
    x, time = inputs()
    assert torch.equal(again.eval()(x, time), network(x, time))


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_old_and_new_are_read(zipped: bool, tmp_path: Path) -> None:
    tensors = public_state_dict()
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(str(tmp_path / "w.pth"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


class Code:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("contents", [Code(), {"patch_embed.proj.weight": Code()}])
def test_code_in_a_file_is_not_run(contents: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(contents, "w.pth")
    Path("plain.pth").write_bytes(pickle.dumps(contents))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(BadInput, match=f"{name} holds no weights that can be read without running code"):
            read_state_dict(name)
    assert not Path("ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_told(suffix: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / f"w{suffix}"
    saved(public_state_dict(), path)
    whole = path.read_bytes()
    for data in (b"", b"\x80\x69.", b"text", whole[: len(whole) // 2], whole[:100], whole[1:]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match="holds no weights that can be read without running code"):
            read_state_dict(str(path))
    assert not recwarn.list


@pytest.mark.parametrize("contents", [{}, [1], {"state_dict": {"a": torch.ones(1)}}, {1: torch.ones(1)}, torch.ones(1)])
def test_what_is_no_state_dict_is_told(contents: object, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="expected a state dict, written by"):
        read_state_dict(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("norm.bias"), "lack 'norm.bias': expected those of a public U-ViT"),
        (
            lambda t: [t.pop(name) for name in list(t) if "skip_linear" in name or "mlp" in name],
            "lack 'in_blocks.0.mlp.fc1.bias', 'in_blocks.0.mlp.fc1.weight', 'in_blocks.0.mlp.fc2.bias' and 11 more",
        ),
        (lambda t: t.update({"context_embed.weight": torch.ones(1)}), "have unknown 'context_embed.weight'"),
        (lambda t: t.update({"mid_block.attn.qkv.bias": torch.ones(48)}), "have unknown 'mid_block.attn.qkv.bias'"),
        (lambda t: t.update({"norm.bias": torch.ones(8)}), r"'norm.bias' in .* has shape \[8\]; expected \[16\]"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 6, 16)}), r"'pos_embed' in .* expected \[1, 5, 16\]"),
        (lambda t: t.update({"pos_embed": torch.ones(5, 16)}), "no 'pos_embed' of 3: expected those of a public"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 0, 16)}), "have image_size 0; expected 8"),
        (lambda t: t.update({"label_emb.weight": torch.tensor(1.0)}), "have unknown 'label_emb.weight'"),
        (lambda t: t.pop("patch_embed.proj.weight"), "have no 'patch_embed.proj.weight' of 4 dimensions"),
    ],
)
def test_other_names_and_shapes_are_refused(
    change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    tensors = public_state_dict()
    change(tensors)
    path = saved(tensors, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=said):
        loaded(path)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"width": 32}, "have width 16; expected 32 from model.backbone.init_args.width: change that"),
        ({"depth": 5}, "have depth 3; expected 5 from model.backbone.init_args.depth"),
        (
            {"patch_size": 2, "image_size": 4},
            "have patch_size 4, image_size 8; expected 2 from .*patch_size, 4 from data",
        ),
        ({"channels": 3}, "have channels 1; expected 3 from data.channels"),
        ({"image_size": 16}, "have image_size 8; expected 16 from data.image_size"),
        ({"classes": 10}, "have classes 0; expected 10 from model.backbone.init_args.classes"),
        ({"time_mlp": True}, "have time_mlp False; expected True from model.backbone.init_args.time_mlp"),
        ({"final_convolution": False}, "have final_convolution True; expected False from"),
        ({"width": 32, "depth": 7}, "have width 16, depth 3; expected 32 from .*width, 7 from .*depth"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_is_fitted(
    sizes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = saved(public_state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=said):
        UViT(**(SIZES | sizes), guided=False, weights=path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(BadInput, match=f"no file of weights '{path}': give model.backbone.init_args.weights"):
            UViT(**SIZES, weights=str(path))
