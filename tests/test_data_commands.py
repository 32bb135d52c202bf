"""`fit` on bad data: one sentence, exit code 2, before anything is trained, and what was there stays."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from cdm_lightning.store import Store
from datamodules import ShardDataModule
from tests.conftest import Fit
from tests.made_shards import agree, agree_on_samples, content, largest, member, members_of, png, save_tar
from tests.test_shards_command import sentence, shards


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_or_read_only(
    code: int, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert fit(tmp_path / "store", "all", "--data.root", str(tmp_path / "root")) == 2
    assert f"cannot write shards below '{tmp_path}/root' ({os.strerror(code)}); shards that were" in sentence(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("from_", "kind"), [("cifar10", "CIFAR10"), ("fashion_mnist", "FashionMNIST")])
def test_no_network(
    from_: str, kind: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(data: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", download)
    options = ("--data.from", from_, "--data.input", str(tmp_path / "in"), "--data.root", str(tmp_path / "root"))
    assert fit(tmp_path / "store", "all", *options) == 2
    assert "no network to download" in sentence(capsys)
    assert shards(tmp_path / "root", tmp_path / "in", from_=from_) == 2
    assert "put it in place or use `--data.from folder --data.input DIR`" in sentence(capsys)
    assert not (tmp_path / "root").exists()
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the settings of the tiny configuration."""
    root = tmp_path_factory.mktemp("data_commands") / "digits"
    ShardDataModule(str(root), public_fraction=0.4, heldout_fraction=0.1, shards_per_source=2).prepare()
    return root


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:-700])


def with_pickle(tar: Path) -> None:
    save_tar(tar, [*members_of(tar), member("evil.pkl", b"cos\nsystem\n(S'touch trace'\ntR.")])
    agree(tar)


def with_link(tar: Path) -> None:
    save_tar(tar, [*members_of(tar), member("evil.png", kind=b"2")])
    agree(tar)


def with_large_image(tar: Path) -> None:
    members = members_of(tar)
    save_tar(tar, [member(members[0][0].name, png(1, (28, 28))), *members[1:]])
    agree(tar)
    agree_on_samples(tar.parent)


def with_other_name(tar: Path) -> None:
    tar.rename(tar.parent / "left.tar")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "source 'digit2': {} has"),
        (with_pickle, "{}: member 'evil.pkl' is not KEY.png or KEY.json: write the shards again"),
        (with_link, "{}: member 'evil.png' is no plain file: write the shards again"),
        (with_large_image, "cannot be used (it is 28x28 grey, not 8x8 grey): write the shards again"),
        (with_other_name, "{} is left over or missing, see manifest.json: write the shards again"),
    ],
)
def test_damaged_shards_are_told_before_anything_is_trained(
    spoil: Callable[[Path], None],
    message: str,
    digits: Path,
    fit: Fit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(digits, tmp_path / "digits"))
    tar = largest(root / "digit2")
    spoil(tar)
    assert fit(tmp_path / "store", "[digit0, digit2]", "--data.root", str(root)) == 2
    assert message.format(tar) in sentence(capsys)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.heldout_fraction", "0.2"), "data.heldout_fraction is 0.2, but the shards in"),
        (("--data.public_fraction", "0"), "data.public_fraction is 0.0, but the shards in"),
        (("--data.shards_per_source", "4"), "data.shards_per_source is 4, but the shards in"),
        (("--data.split", "random:3"), "data.split is random:3, but the shards in"),
        (("--data.channels", "3"), "but the settings say size 8 with 3 channels: set image_size and channels to those"),
        (("--data.sources", "[../digit0]"), "unknown source '../digit0'"),
        (("--data.exclude", "/nowhere"), "exclude: '/nowhere' is no file; it must list keys, one a line"),
    ],
)
def test_settings_that_do_not_fit_the_shards(
    options: tuple[str, ...], message: str, digits: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(digits)
    assert fit(tmp_path / "store", "all", "--data.root", str(digits), *options) == 2
    assert message in sentence(capsys)
    assert content(digits) == before
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("source", ["digit2", "public"])
def test_a_source_of_which_all_is_excluded(
    source: str, digits: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((digits / source / "manifest.json").read_text())
    (tmp_path / "keys").write_text("\n".join(manifest["samples"]))
    options = ("--data.root", str(digits), "--data.exclude", str(tmp_path / "keys"))
    assert fit(tmp_path / "store", "[digit0, digit2]", *options) == 2
    assert f"source '{source}' has no training image left" in sentence(capsys)
    assert not (tmp_path / "store").exists()


def test_a_source_of_one_image_without_a_held_out_part(fit: Fit, tmp_path: Path) -> None:
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    for k in range(61):
        path = tmp_path / "images" / ("ann/one" if k == 60 else f"public/{k % 3}") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[k]).save(path)
    data = ShardDataModule(
        str(tmp_path / "root"), "folder", str(tmp_path / "images"), heldout_fraction=0, image_size=8, channels=1
    )
    data.prepare()
    assert [tuple(data.images("ann", part)[1].shape) for part in ("train", "heldout")] == [(1, 1, 8, 8), (0, 1, 8, 8)]
    options = {"data.root": "root", "data.from": "folder", "data.input": "images", "data.public_fraction": "0"}
    options |= {"data.heldout_fraction": "0", "data.shards_per_source": "4", "model.backbone_steps": "2"}
    options |= {"model.compartment": "tokens", "trainer.max_steps": "2"}
    paths = {"data.root", "data.input"}
    arguments = [f"--{key}={tmp_path / value if key in paths else value}" for key, value in options.items()]
    assert fit(tmp_path / "store", "all", *arguments) == 0
    assert Store.open(tmp_path / "store").read_card("ann").n == 1
