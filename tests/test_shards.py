"""Shards: same input gives same bytes, splits survive a removal, images are cut and resized as Pillow does it."""

import dataclasses
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdm_lightning.errors import BadInput
from datamodules.encoding import convert
from datamodules.manifest import Sample, data_sha256, read_manifest, usable
from datamodules.splits import in_public_fraction, part_of, public_labels, random_part, shard_of
from datamodules.tars import read_shard
from tests.decoding import decode_image
from tests.made_shards import SOURCES, content, keys_in, noise, save_images, shard_of_key, write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images")


def test_same_input_gives_same_bytes(images: Path, tmp_path: Path) -> None:
    counts = write(tmp_path / "one", images)
    assert write(tmp_path / "two", images) == counts
    assert sum(counts.values()) == 80
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_shards_hold_images_labels_and_origins_without_traces_of_the_machine(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "root", images, public_fraction=0)
    seen = set()
    for path in (tmp_path / "root" / "bob").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o444) for m in members)
        assert keys_in(path) == sorted(keys_in(path))
        for sample in read_shard(path):
            seen.add(sample.key)
            original = images / "bob" / f"{sample.key.removeprefix('bob-')}.png"
            assert decode_image(sample.png, (3, 6, 6)).equal(decode_image(original.read_bytes(), (3, 6, 6)))
            assert sample.label == "bob"
            with tarfile.open(path) as tar:
                record = json.load(tar.extractfile(f"{sample.key}.json"))
            assert record == {"label": "bob", "origin": f"bob/{original.name}"}
    assert len(seen) == 40


def test_splits_survive_the_removal_of_a_sample(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "before", images)
    (images / "alice" / "07.png").unlink()
    write(tmp_path / "after", images)
    for source in (*SOURCES, "public"):
        before, after = read_manifest(tmp_path / "before" / source), read_manifest(tmp_path / "after" / source)
        rest = {key: sample for key, sample in before.samples.items() if key != "alice-07"}
        assert after.samples == rest
        shards = shard_of_key(tmp_path / "before" / source)
        shards.pop("alice-07", None)
        assert shard_of_key(tmp_path / "after" / source) == shards


def test_the_parts_have_about_the_asked_size() -> None:
    parts = [part_of(f"key-{k}", 0.25) for k in range(4000)]
    assert abs(parts.count("heldout") / 4000 - 0.25) < 0.03


@pytest.mark.parametrize(
    ("key", "part", "shard", "random", "public"),
    [
        ("digit-0000", "heldout", "00033.tar", "part56", False),
        ("digit-0001", "heldout", "00044.tar", "part28", True),
        ("cifar10-00042", "heldout", "00019.tar", "part50", False),
        ("alice-07", "train", "00062.tar", "part71", False),
    ],
)
def test_splits_stay_what_they_were_in_every_process(
    key: str, part: str, shard: str, random: str, public: bool
) -> None:
    assert (part_of(key, 0.5), shard_of(key, 64)) == (part, shard)
    assert (random_part(key, 100), in_public_fraction(key, 0.5)) == (random, public)


def test_the_order_of_the_input_does_not_matter(images: Path, tmp_path: Path) -> None:
    lines = [f"{path},{path.parent.name},x" for path in sorted(images.rglob("*.png"))]
    for name, order in (("one", lines), ("two", lines[::-1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,source,label", *order]))
        write(tmp_path / name, tmp_path / f"{name}.csv", from_="list", split="list")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_random_parts_share_all_images_and_ignore_classes(images: Path, tmp_path: Path) -> None:
    counts = write(tmp_path / "root", images, split="random:3", public_fraction=0)
    assert set(counts) == {"part0", "part1", "part2"}
    assert sum(counts.values()) == 80
    assert min(counts.values()) > 10


@pytest.mark.parametrize("entries", [["alice"], [0], ["0"], ["Alice"]])
def test_public_classes_by_label_or_index(entries: list[str | int], images: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "root", images, public_classes=entries, public_fraction=0) == {"bob": 40, "public": 40}


def test_a_label_wins_over_an_index() -> None:
    assert public_labels(["1", "2", "7"], [1, "2", 0]) == {"1", "2"}


def test_an_unknown_public_class_is_refused() -> None:
    with pytest.raises(BadInput, match="public class 'shiip' is neither a label nor an index below 2.*mean 'ship'"):
        public_labels(["ship", "truck"], ["shiip"])


def test_a_folder_named_public_is_the_public_source(images: Path, tmp_path: Path) -> None:
    (images / "alice").rename(images / "public")
    assert write(tmp_path / "root", images, public_fraction=0) == {"bob": 40, "public": 40}
    counts = write(tmp_path / "parts", images, split="random:2", public_fraction=0)
    assert (counts.pop("public"), sum(counts.values()), set(counts)) == (40, 40, {"part0", "part1"})
    assert write(tmp_path / "classes", images, split="class", public_fraction=0)["public"] == 40


def test_a_split_that_the_origin_does_not_know_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "alice").rename(images / "3 cats")
    with pytest.raises(BadInput, match="'3-cats' cannot name a source"):
        write(tmp_path / "root", images)
    with pytest.raises(BadInput, match=r"split must be one of .* but is 'random:0'"):
        write(tmp_path / "root", images, split="random:0")


@pytest.mark.parametrize("drop_from_public", [False, True])
def test_equal_content_leaves_the_source_or_public(
    drop_from_public: bool, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "public").mkdir()
    noise(5000).save(images / "public" / "own.png")
    shutil.copy(images / "alice" / "07.png", images / "public" / "copy.png")
    with caplog.at_level(logging.INFO, logger="datamodules"):
        counts = write(tmp_path / "root", images, public_fraction=0, drop_from_public=drop_from_public)
    expected = {"alice": 40, "public": 1} if drop_from_public else {"alice": 39, "public": 2}
    assert counts == {"bob": 40, **expected}
    left = "public" if drop_from_public else "alice"
    assert caplog.messages == [f"images that are both in public and in a source, left out: {left} 1"]
    assert ("alice-07" in read_manifest(tmp_path / "root" / "alice").samples) == drop_from_public


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("shape", [(9, 23), (40, 12), (7, 7), (3, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_resize_match_pillow(mode: str, shape: tuple[int, int], channels: int, tmp_path: Path) -> None:
    image = noise(1, (*shape, 3)).convert(mode)
    (tmp_path / "images" / "a").mkdir(parents=True)
    image.save(tmp_path / "images" / "a" / ("x.jpg" if mode == "CMYK" else "x.png"))
    write(tmp_path / "root", tmp_path / "images", size=7, channels=channels, public_fraction=0)
    (shard,) = (tmp_path / "root" / "a").glob("*.tar")
    (sample,) = read_shard(shard)
    with Image.open(next((tmp_path / "images" / "a").iterdir())) as stored:
        flat = stored.convert("L" if channels == 1 else "RGB")
    height, width = shape
    side = min(shape)
    box = ((width - side) // 2, (height - side) // 2, (width - side) // 2 + side, (height - side) // 2 + side)
    expected = np.array(flat.crop(box).resize((7, 7), Image.Resampling.LANCZOS)).reshape(7, 7, channels)
    assert np.array_equal(decode_image(sample.png, (channels, 7, 7)).permute(1, 2, 0).numpy(), expected)


def test_writing_again_replaces_what_differs_and_nothing_else(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, images)
    expected = content(root)
    (root / "other").mkdir()
    (root / "other" / "file").write_text("mine")
    before = {source: (root / source).stat().st_ino for source in SOURCES}
    (root / "alice" / "manifest.json").write_text("damaged")
    write(root, images)
    assert content(root) == {**expected, "other/file": b"mine"}
    assert (root / "bob").stat().st_ino == before["bob"]
    assert (root / "alice").stat().st_ino != before["alice"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "root"]


@pytest.fixture
def alice(images: Path, tmp_path: Path) -> Path:
    write(tmp_path / "root", images)
    return tmp_path / "root" / "alice"


def sample(content: str, part: str = "train") -> Sample:
    return Sample(content, "label", part)


def test_usable_takes_each_content_once(alice: Path) -> None:
    samples = {
        "c": sample("1"),
        "b": sample("1"),
        "a": sample("2"),
        "h": sample("1", "heldout"),
        "i": sample("3", "heldout"),
        "j": sample("3", "heldout"),
    }
    manifest = dataclasses.replace(read_manifest(alice), samples=samples)
    assert list(usable(manifest, "train", frozenset())) == ["a", "b"]
    assert list(usable(manifest, "train", {"b"})) == ["a", "c"]
    assert list(usable(manifest, "heldout", frozenset())) == ["i"]
    assert list(usable(manifest, "heldout", {"b", "c"})) == ["h", "i"]


def test_the_data_hash_depends_on_key_content_and_label_alone() -> None:
    one = data_sha256({"a": sample("1"), "b": sample("2")})
    assert data_sha256({"b": sample("2", "heldout"), "a": sample("1")}) == one
    others = [{"a": sample("1")}, {"a": sample("1"), "c": sample("2")}, {"a": sample("1"), "b": sample("3")}]
    assert one not in {data_sha256(other) for other in others}
    assert data_sha256({"a": Sample("1", "x", "train"), "b": sample("2")}) != one


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(channels: int) -> None:
    """Whatever colour is stored there; what is half transparent is mixed with it."""
    levels = np.zeros((2, 2, 4), dtype=np.uint8)
    levels[..., 3] = [[0, 255], [128, 0]]
    shown = np.array(convert(Image.fromarray(levels), channels, "x.png")).reshape(2, 2, -1)
    assert np.array_equal(shown, np.broadcast_to(np.array([[255, 0], [127, 255]])[..., None], shown.shape))
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.info["transparency"] = 0
    assert np.array(convert(palette, 1, "x.png")).tolist() == [[255, 1]]
