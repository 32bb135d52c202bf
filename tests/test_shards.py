"""Shards: same input gives same bytes, splits survive a removal, damage is noticed, the order is what was promised."""

import dataclasses
import io
import json
import logging
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdm_lightning.errors import BadInput, ShardError
from cdm_lightning.images import decode_image, encode_png
from cdm_lightning.seeding import stable_hash
from datamodules import writer
from datamodules.manifest import Manifest, Sample, data_sha256, read_manifest, usable, verify
from datamodules.origins import OriginName
from datamodules.splits import in_public_fraction, part_of, public_labels, random_part, shard_of
from datamodules.stages import (
    RawSample,
    batches,
    decode_sample,
    own_batches,
    read_shard,
    training_order,
    training_stream,
    whole_shard,
)
from datamodules.writer import write_shards

SOURCES = ("alice", "bob")


def noise(seed: int, shape: tuple[int, ...] = (6, 6, 3)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two sources with 40 images each."""
    root = tmp_path / "images"
    for s, source in enumerate(SOURCES):
        (root / source).mkdir(parents=True)
        for k in range(40):
            noise(100 * s + k).save(root / source / f"{k:02d}.png")
    return root


def write(
    root: Path,
    images: Path,
    *,
    from_: OriginName = "folder",
    split: str = "folder",
    size: int = 6,
    channels: int = 3,
    public_classes: Sequence[str | int] = (),
    public_fraction: float = 0.2,
    drop_from_public: bool = False,
) -> dict[str, int]:
    return write_shards(
        root,
        from_=from_,
        input=str(images),
        split=split,
        image_size=size,
        channels=channels,
        public_classes=public_classes,
        public_fraction=public_fraction,
        heldout_fraction=0.25,
        shards_per_source=4,
        drop_from_public=drop_from_public,
    )


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def keys_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")]


def shard_of_key(folder: Path) -> dict[str, str]:
    return {key: path.name for path in folder.glob("*.tar") for key in keys_in(path)}


def epoch_keys(folder: Path, exclude: frozenset[str] = frozenset(), seed: int = 3, epoch: int = 0) -> list[str]:
    manifest = read_manifest(folder)
    used = usable(manifest, "train", exclude).keys()
    stream = training_order(folder, manifest.shards, used, seed=seed, source=folder.name, epoch=epoch)
    return [sample.key for sample in stream]


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
            assert decode_image(sample.png, 3).equal(decode_image(original.read_bytes(), 3))
            assert json.loads(sample.json) == {"label": "bob", "origin": f"bob/{original.name}"}
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
    assert np.array_equal(decode_image(sample.png, channels).permute(1, 2, 0).numpy(), expected)


def test_an_interrupted_run_leaves_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path, manifest: Manifest) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out" / "root", images)
    assert list((tmp_path / "out").iterdir()) == []


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
    """The shards of the source alice."""
    write(tmp_path / "root", images)
    return tmp_path / "root" / "alice"


def test_whole_shards_pass(alice: Path) -> None:
    assert verify(alice) == read_manifest(alice)


@pytest.mark.parametrize("cut", range(12))
def test_every_cut_is_noticed(cut: int, alice: Path) -> None:
    path = max(alice.glob("*.tar"))
    path.write_bytes(path.read_bytes()[: cut * path.stat().st_size // 12])
    with pytest.raises(
        ShardError, match=rf"source 'alice': .*{path.name} has \d+ bytes, not \d+.*write the shards again"
    ):
        verify(alice)


def test_a_flipped_byte_is_noticed(alice: Path) -> None:
    path = max(alice.glob("*.tar"))
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=f"source 'alice': .*{path.name} has sha256"):
        verify(alice)


@pytest.mark.parametrize("missing", [True, False])
def test_missing_and_left_over_shards_are_noticed(missing: bool, alice: Path) -> None:
    path = max(alice.glob("*.tar"))
    path.unlink() if missing else shutil.copy(path, alice / "00009.tar")
    with pytest.raises(ShardError, match=path.name if missing else "00009.tar"):
        verify(alice)


def test_the_manifest_of_another_source_is_noticed(alice: Path) -> None:
    shutil.copytree(alice, alice.parent / "carol")
    with pytest.raises(ShardError, match="is of source 'alice', not of 'carol'"):
        verify(alice.parent / "carol")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size": 6', '"size": "6"'),
        ('"size": 6', '"size": true'),
        ('"licence"', '"license"'),
        ('"label": "alice"', '"label": null'),
        ('"part": "train"', '"part": "test"'),
        ('"alice-00"', '"../alice"'),
        (".tar", "/../../x.tar"),
        ("{", "["),
    ],
)
def test_a_malformed_manifest_is_refused(old: str, new: str, alice: Path) -> None:
    path = alice / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ShardError, match=r"alice/manifest\.json is no manifest"):
        read_manifest(alice)


def test_a_missing_manifest_is_refused(alice: Path) -> None:
    (alice / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest\.json is missing"):
        verify(alice)


def test_a_cut_between_members_is_noticed_while_reading(alice: Path) -> None:
    path = max(alice.glob("*.tar"))
    with tarfile.open(path) as tar:
        ends = [member.offset for member in tar.getmembers()[1:]]
    data, shard = path.read_bytes(), read_manifest(alice).shards[path.name]
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(ShardError, match=path.name):
            whole_shard(path, shard)


class Payload:
    """Unpickling this creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["pkl", "pyd", "pth", "npy"])
@pytest.mark.parametrize("stem", ["a", "evil"])
def test_a_foreign_member_is_refused_and_not_run(suffix: str, stem: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "00000.tar", tmp_path / "trace"
    members = {"a.png": b"", "a.json": b"{}", f"{stem}.{suffix}": pickle.dumps(Payload(trace))}
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ShardError, match=rf"00000\.tar: sample '{stem}' has .*'{suffix}'"):
        list(read_shard(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("png", "record", "message"),
    [
        (encode_png(torch.zeros(1, 6, 6, dtype=torch.uint8))[:30], b'{"label": "a"}', "cannot be decoded"),
        (encode_png(torch.zeros(1, 6, 5, dtype=torch.uint8)), b'{"label": "a"}', "is no 6x6 image with a label"),
        (encode_png(torch.zeros(1, 6, 6, dtype=torch.uint8)), b'{"label": 1}', "is no 6x6 image with a label"),
        (encode_png(torch.zeros(1, 6, 6, dtype=torch.uint8)), b'{"label"', "cannot be decoded"),
        (encode_png(torch.zeros(1, 6, 6, dtype=torch.uint8)), b"[]", "cannot be decoded"),
        (encode_png(torch.zeros(1, 6, 6, dtype=torch.uint8)), b"{}", "cannot be decoded"),
    ],
    ids=["cut", "size", "number", "json", "sequence", "empty"],
)
def test_a_sample_that_is_no_image_with_a_label_is_named(png: bytes, record: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=rf"00000\.tar: sample 'k' {message}"):
        decode_sample(RawSample("k", png, record, Path("00000.tar")), 6, 1)


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


def test_an_epoch_has_every_used_key_once(alice: Path) -> None:
    keys = epoch_keys(alice)
    assert sorted(keys) == list(usable(read_manifest(alice), "train", frozenset()))


def test_epochs_and_seeds_differ_and_repeat(alice: Path) -> None:
    assert epoch_keys(alice) == epoch_keys(alice)
    assert epoch_keys(alice) != epoch_keys(alice, epoch=1)
    assert epoch_keys(alice) != epoch_keys(alice, seed=4)


def test_the_order_with_an_excluded_key_is_the_order_without_it(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "before", images)
    excluded = epoch_keys(tmp_path / "before" / "alice")[5]
    (images / f"{excluded.replace('-', '/')}.png").unlink()
    write(tmp_path / "after", images)
    for epoch in range(3):
        without = epoch_keys(tmp_path / "after" / "alice", epoch=epoch)
        assert epoch_keys(tmp_path / "before" / "alice", frozenset({excluded}), epoch=epoch) == without
        assert excluded not in without


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_order_is_that_of_the_hashes(epoch: int, alice: Path) -> None:
    used = usable(read_manifest(alice), "train", frozenset())
    shards = shard_of_key(alice)
    by_shard = sorted(
        used, key=lambda key: (stable_hash(3, "alice", epoch, shards[key]), stable_hash(3, "alice", epoch, key))
    )
    assert epoch_keys(alice, epoch=epoch) == by_shard


def test_the_stream_goes_from_epoch_to_epoch(alice: Path) -> None:
    manifest = read_manifest(alice)
    used = usable(manifest, "train", frozenset()).keys()
    stream = training_stream(alice, manifest.shards, used, seed=3, source="alice")
    keys = [next(stream).key for _ in range(2 * len(used))]
    assert keys == epoch_keys(alice) + epoch_keys(alice, epoch=1)


def test_a_used_sample_that_no_shard_has_is_noticed(alice: Path) -> None:
    manifest = read_manifest(alice)
    used = {*usable(manifest, "train", frozenset()), "alice-99"}
    with pytest.raises(ShardError, match=r"alice have \d+ of the \d+ used samples"):
        list(training_order(alice, manifest.shards, used, seed=0, source="alice", epoch=0))


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_ranks_and_workers_share_one_sequence(world: int, workers: int, alice: Path) -> None:
    (path, *_) = sorted(alice.glob("*.tar"))
    (raw, *_) = read_shard(path)
    samples = [dataclasses.replace(raw, key=str(k)) for k in range(7 * world * workers * 2)]
    every = list(batches(samples, 7))
    merged: list[list[object]] = [[] for _ in every]
    for rank in range(world):
        for worker in range(workers):
            own = own_batches(every, rank=rank, world=world, worker=worker, workers=workers)
            for turn, batch in enumerate(own):
                merged[(turn * workers + worker) * world + rank].append(batch)
    assert merged == [[batch] for batch in every]


def test_the_last_batch_of_a_finite_stream_is_shorter(alice: Path) -> None:
    (path, *_) = sorted(alice.glob("*.tar"))
    (raw, *_) = read_shard(path)
    assert [len(batch) for batch in batches([raw] * 7, 3)] == [3, 3, 1]
    assert list(batches([], 3)) == []
