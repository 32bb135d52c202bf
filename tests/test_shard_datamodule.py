"""The data module: what is there, one source at a time, the same batches for any workers and ranks."""

import json
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cdm_lightning.errors import BadInput, ShardError, UnknownSource
from datamodules import ShardDataModule
from datamodules.stages import Batch

SOURCES = ["digit1", "digit3", "digit5", "digit7", "digit9"]
PUBLIC_CLASSES: list[str | int] = [0, 2, 4, 6, 8]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits as shards: the odd ones are sources, the even ones public."""
    root = str(tmp_path_factory.mktemp("shards") / "digits")
    ShardDataModule(root, public_classes=PUBLIC_CLASSES).prepare()
    return root


def stream(data: ShardDataModule, count: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), count))


def keys(found: list[Batch]) -> list[list[str]]:
    return [batch["key"] for batch in found]


def test_prepare_writes_all_sources_and_public(root: str) -> None:
    data = ShardDataModule(root, sources="digit3")
    assert data.available_sources() == SOURCES
    assert data.has_public()


def test_prepare_leaves_shards_that_are_there(root: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(root).rglob("*")}
    ShardDataModule(root, from_="folder", input="missing").prepare()
    assert {path: path.stat().st_mtime_ns for path in Path(root).rglob("*")} == before


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ("all", SOURCES),
        ("digit7", ["digit7"]),
        ("digit7,digit1", ["digit7", "digit1"]),
        (["digit9", "digit1"], ["digit9", "digit1"]),
    ],
)
def test_chosen_sources_keep_the_order_given(sources: str | list[str], expected: list[str], root: str) -> None:
    assert ShardDataModule(root, sources=sources).chosen_sources() == expected


@pytest.mark.parametrize("source", ["digit", "public", ""])
def test_an_unknown_source_is_refused(source: str, root: str) -> None:
    with pytest.raises(UnknownSource, match=f"unknown source '{source}': .* has digit1, digit3"):
        ShardDataModule(root, sources=[source]).chosen_sources()
    if source != "public":
        with pytest.raises(UnknownSource, match=f"unknown source '{source}'"):
            ShardDataModule(root).open(source)


def test_images_are_those_of_scikit_learn(root: str) -> None:
    data, digits = ShardDataModule(root), load_digits()
    levels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    seen: list[int] = []
    for source, part in product((*SOURCES, "public"), ("train", "heldout")):
        names, images, labels = data.images(source, part)
        index = [int(name.removeprefix("digit-")) for name in names]
        assert images.dtype == torch.uint8
        assert index == sorted(index)
        assert np.array_equal(images.numpy()[:, 0], levels[index])
        assert labels == [f"digit{target}" for target in digits.target[index]]
        seen += index
    assert len(set(seen)) == len(seen)
    assert {levels[k].tobytes() for k in seen} == {image.tobytes() for image in levels}


def test_images_of_a_part_without_samples_are_empty(tmp_path: Path) -> None:
    data = ShardDataModule(str(tmp_path / "root"), heldout_fraction=0)
    data.prepare()
    names, images, labels = data.images("digit0", "heldout")
    assert (names, images.shape, labels) == ([], (0, 1, 8, 8), [])


def test_class_counts_and_hash_are_of_the_used_training_part(root: str) -> None:
    data = ShardDataModule(root)
    _, _, labels = data.images("public", "train")
    assert data.class_counts("public") == {f"digit{d}": labels.count(f"digit{d}") for d in (0, 2, 4, 6, 8)}
    assert data.data_sha256("digit1") == ShardDataModule(root, seed=9, sources="digit1").data_sha256("digit1")


def test_batches_hold_the_opened_source(root: str) -> None:
    data = ShardDataModule(root, batch_size=32)
    data.open("digit5")
    _, images, _ = data.images("digit5", "train")
    by_key = dict(zip(data.used("digit5", "train"), images, strict=True))
    for batch in stream(data, 10):
        assert batch["image"].shape == (32, 1, 8, 8)
        assert batch["label"] == ["digit5"] * 32
        assert torch.equal(batch["image"], torch.stack([by_key[key] for key in batch["key"]]))


def test_the_same_batches_for_no_and_two_workers(root: str) -> None:
    found = []
    for num_workers in (0, 2):
        data = ShardDataModule(root, batch_size=50, num_workers=num_workers)
        data.open("digit5")
        found.append(stream(data, 9))
    assert keys(found[0]) == keys(found[1])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one["image"], two["image"])


def test_ranks_share_the_sequence(root: str) -> None:
    data = ShardDataModule(root, batch_size=20)
    data.open("digit5")
    alone = keys(stream(data, 8))
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        assert keys(stream(data, 4)) == alone[rank::2]


def test_every_key_once_per_epoch_and_epochs_differ(root: str) -> None:
    data = ShardDataModule(root, batch_size=1)
    data.open("digit5")
    used = list(data.used("digit5", "train"))
    order = [key for batch in keys(stream(data, 2 * len(used))) for key in batch]
    first, second = order[: len(used)], order[len(used) :]
    assert sorted(first) == sorted(second) == used
    assert first != second


def test_excluded_keys_are_not_used(root: str, tmp_path: Path) -> None:
    used = list(ShardDataModule(root).used("digit5", "train"))
    (tmp_path / "keys").write_text(f"{used[3]}\n\n  {used[8]}\nnot-there\n")
    data = ShardDataModule(root, exclude=str(tmp_path / "keys"), batch_size=16)
    assert data.excluded_keys(data.manifest("digit5")) == {used[3], used[8], "not-there"}
    assert list(data.used("digit5", "train")) == [key for key in used if key not in (used[3], used[8])]
    assert data.data_sha256("digit5") != ShardDataModule(root).data_sha256("digit5")
    data.open("digit5")
    assert not {used[3], used[8]} & {key for batch in keys(stream(data, 30)) for key in batch}


def test_a_bad_list_of_keys_is_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exclude: '.*missing' is no file"):
        ShardDataModule(root, exclude=str(tmp_path / "missing")).used("digit5", "train")
    (tmp_path / "keys").write_text("digit-0001.png\n")
    with pytest.raises(BadInput, match="exclude: 'digit-0001.png' in .* is no key"):
        ShardDataModule(root, exclude=str(tmp_path / "keys")).used("digit5", "train")


def test_a_source_without_a_usable_sample_is_refused(root: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n".join(ShardDataModule(root).manifest("digit5").samples))
    data = ShardDataModule(root, exclude=str(tmp_path / "keys"))
    data.open("digit5")
    with pytest.raises(BadInput, match=f"source 'digit5' in '{root}' has no usable training sample"):
        data.train_dataloader()


def test_other_sizes_and_channels_than_the_shards_have_are_refused(root: str) -> None:
    message = "has images of size 8 with 1 channels, but the settings say size 8 with 3 channels: set image_size"
    with pytest.raises(ShardError, match=message):
        ShardDataModule(root, channels=3).images("digit5", "train")
    with pytest.raises(ShardError, match="but the settings say size 16 with 1 channels"):
        ShardDataModule(root, image_size=16).open("digit5")


@pytest.fixture
def damaged(tmp_path: Path) -> ShardDataModule:
    """Digits with a changed byte in a shard of digit5."""
    data = ShardDataModule(str(tmp_path / "root"))
    data.prepare()
    path = max((tmp_path / "root" / "digit5").glob("*.tar"))
    changed = bytearray(path.read_bytes())
    changed[600] ^= 255
    path.write_bytes(changed)
    return data


def test_damage_is_noticed_before_anything_is_used(damaged: ShardDataModule) -> None:
    for use in (damaged.open, damaged.verify, lambda source: damaged.images(source, "train")):
        with pytest.raises(ShardError, match=r"source 'digit5': .*\.tar has sha256"):
            use("digit5")
    damaged.open("digit4")


def test_the_manifest_is_read_each_time(root: str) -> None:
    manifest = json.loads((Path(root) / "digit1" / "manifest.json").read_text())
    assert set(manifest) == {"source", "licence", "image", "shards", "samples"}
    assert ShardDataModule(root).manifest("digit1").source == manifest["source"] == "digit1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"from_": "cifar"}, "from must be one of .* but is 'cifar'; did you mean 'cifar10'"),
        ({"split": "owner"}, "split must be one of"),
        ({"public_fraction": 1.0}, "public_fraction must be at least 0 and below 1, but is 1.0"),
        ({"heldout_fraction": -0.1}, "heldout_fraction must be at least 0"),
        ({"shards_per_source": 0}, "shards_per_source must be at least 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"channels": 4}, "channels must be 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ShardDataModule(**settings)
