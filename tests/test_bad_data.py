"""Samples and manifests that are not what they should be are refused in one sentence that names them."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from PIL import ImageFile

from cdm_lightning.errors import ShardError
from datamodules.manifest import read_manifest
from datamodules.verification import verify_files
from tests.made_shards import (
    Member,
    agree,
    agree_on_samples,
    change_manifest,
    data_of,
    largest,
    member,
    members_of,
    png,
    said_of,
    save_tar,
)
from tests.test_images import png_of_size


def edited(members: Sequence[Member], suffix: str, data: bytes) -> Iterator[Member]:
    """Yield the members with another content of the first one whose name ends with `suffix`."""
    index = next(k for k, (info, _) in enumerate(members) if info.name.endswith(suffix))
    for k, (info, old) in enumerate(members):
        yield member(info.name, data if k == index else old)


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        (".png", png(999), "has another image than its manifest says"),
        (".json", b'{"label": "bob", "origin": "x"}', "has label 'bob', not 'alice' as in its manifest"),
        (".json", b'{"label": 1}', "holds no label"),
        (".json", b'{"label"', "holds no label"),
        (".json", b"\xff", "holds no label"),
        (".json", b"[]", "holds no label"),
        (".json", b"{}", "holds no label"),
        (".json", b"[" * 100_000, "holds no label"),
    ],
    ids=["image", "label", "number", "cut", "latin", "sequence", "empty", "deep"],
)
def test_a_sample_that_is_not_the_one_of_the_manifest_is_named(
    suffix: str, data: bytes, message: str, alice: Path
) -> None:
    path = largest(alice)
    members = members_of(path)
    key = next(info.name for info, _ in members if info.name.endswith(suffix)).removesuffix(suffix)
    save_tar(path, list(edited(members, suffix, data)))
    agree(path)
    assert message in (text := said_of(alice))
    assert str(path) in text
    assert key in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(1, (5, 6, 3)), "it is 6x5 colour, not 6x6 colour"),
        (png(1, (28, 28, 3)), "it is 28x28 colour, not 6x6 colour"),
        (png(1, (6, 6)), "it is 6x6 grey, not 6x6 colour"),
        (png(1, (6, 6, 4)), "it is 6x6 of mode RGBA, not 6x6 colour"),
        (png(1)[:60], "no readable PNG or JPEG image"),
        (b"\x80\x04", "no readable PNG or JPEG image"),
        (png_of_size(50_000, 50_000), "no readable PNG or JPEG image"),
        (png_of_size(9_000, 9_000), "9000x9000 pixels are more than 64000000"),
        (png_of_size(7_000, 7_000), "it is 7000x7000 of mode 1, not 6x6 colour"),
        (png(1)[:33] + png_of_size(7_000, 7_000)[8:33] + png(1)[33:], "it is 7000x7000 of mode 1, not 6x6 colour"),
    ],
    ids=["height", "size", "grey", "alpha", "cut", "pickle", "bomb", "large", "other", "two headers"],
)
def test_an_image_of_another_shape_is_refused_before_it_is_decoded(
    data: bytes, message: str, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = largest(alice)
    save_tar(path, list(edited(members_of(path), ".png", data)))
    agree(path)
    agree_on_samples(alice)
    load = ImageFile.ImageFile.load

    def guarded(image: ImageFile.ImageFile) -> object:
        assert (image.size, image.mode) == ((6, 6), "RGB")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", guarded)
    text = said_of(alice)
    assert f"{path}: sample '" in text
    assert f"cannot be used ({message}" in text


def test_two_samples_of_one_key_in_a_tar_are_refused(alice: Path) -> None:
    path = largest(alice)
    members = members_of(path)
    for order in (members[:2] + members, members + members[:2]):
        save_tar(path, order)
        agree(path, samples=len(members) // 2 + 1)
        change_manifest(alice, lambda values: values["samples"].update(ghost=values["samples"]["alice-00"]))
        assert f"{path}: member '{members[0][0].name}' is there twice" in said_of(alice)


def test_two_samples_of_one_key_in_two_tars_are_refused(alice: Path) -> None:
    first, second = sorted(alice.glob("*.tar"))[:2]
    twice = members_of(first)[:2]
    replaced = members_of(second)[:2]
    save_tar(second, twice + members_of(second)[2:])
    agree(second)
    key = twice[0][0].name.split(".")[0]
    assert f"sample '{key}' lies in both {first} and {second}" in said_of(alice)
    assert replaced[0][0].name.split(".")[0] in read_manifest(alice).samples


def test_a_sample_that_the_manifest_does_not_have_is_named(alice: Path) -> None:
    path = largest(alice)
    members = members_of(path)
    save_tar(path, [member("ghost.png", members[0][1]), member("ghost.json", members[1][1]), *members[2:]])
    agree(path)
    assert f"{path}: sample 'ghost' is not in its manifest" in said_of(alice)


@pytest.mark.parametrize("missing", [True, False])
def test_missing_and_left_over_shards_are_noticed(missing: bool, alice: Path) -> None:
    path = largest(alice)
    path.unlink() if missing else shutil.copy(path, alice / "00009.tar")
    assert (path.name if missing else "00009.tar") in said_of(alice)


def test_a_shard_that_cannot_be_read_is_named(alice: Path) -> None:
    path = largest(alice)
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be read (Is a directory)" in said_of(alice)


def test_the_manifest_of_another_source_is_noticed(alice: Path) -> None:
    shutil.copytree(alice, alice.parent / "carol")
    assert "is of source 'alice', not of 'carol'" in said_of(alice.parent / "carol")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size": 6', '"size": "6"'),
        ('"size": 6', '"size": true'),
        ('"licence"', '"license"'),
        ('"label": "alice"', '"label": null'),
        ('"label": "alice"', '"label": ""'),
        ('"label": "alice"', '"label": "a\\nb"'),
        ('"part": "train"', '"part": "test"'),
        ('"alice-00"', '"../alice"'),
        ('"alice-00"', '"alice/00"'),
        ('"alice-00"', '"alice-01"'),
        ('"source": "alice"', '"source": "../alice"'),
        ('"source": "alice"', '"source": "monolith"'),
        (".tar", "/../../x.tar"),
        ('"0', '"../0'),
        ("{", "["),
        ("{", "[" * 100_000),
    ],
)
def test_a_malformed_manifest_is_refused(old: str, new: str, alice: Path) -> None:
    path = alice / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert f"{path} is no manifest" in said_of(alice)


def test_two_samples_of_one_key_in_a_manifest_are_refused(alice: Path) -> None:
    path = alice / "manifest.json"
    text = path.read_text()
    place = text.index('"alice-00"')
    entry = text[place : text.index("}", place) + 1]
    path.write_text(text[:place] + entry + ", " + text[place:])
    assert f"{path} is no manifest ('alice-00' is there twice): write the shards again" == said_of(alice)


def test_a_manifest_that_is_no_text_is_refused(alice: Path) -> None:
    (alice / "manifest.json").write_bytes(b"\xff\xfe")
    assert "is no manifest" in said_of(alice)
    (alice / "manifest.json").unlink()
    (alice / "manifest.json").mkdir()
    assert "is no manifest ([Errno 21] Is a directory" in said_of(alice)


def test_a_missing_manifest_is_refused(alice: Path) -> None:
    (alice / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest\.json is missing: write the shards again"):
        verify_files(alice)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_vanishes_during_training_is_told_in_one_line(num_workers: int, alice: Path) -> None:
    data = data_of(alice, num_workers)
    data.open("alice")
    path = largest(alice)
    path.unlink()
    with pytest.raises(ShardError) as caught:
        list(islice(data.train_dataloader(), 20))
    assert str(caught.value).startswith(f"{path} cannot be read ([Errno 2] No such file")
    assert "\n" not in str(caught.value)
