"""Cut, flipped and forged tars are refused in one sentence, even where an attacker makes the manifest agree."""

import gzip
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cdm_lightning.errors import ShardError
from datamodules.manifest import read_manifest
from datamodules.tars import RawSample, read_shard
from datamodules.verification import all_samples
from tests.made_shards import (
    agree,
    data_of,
    largest,
    member,
    members_of,
    said_of,
    save_tar,
)


def samples(folder: Path) -> list[tuple[str, bytes, str]]:
    found: list[RawSample] = all_samples(folder, read_manifest(folder))
    return [(sample.key, sample.png, sample.label) for sample in found]


def test_whole_shards_pass(alice: Path) -> None:
    assert data_of(alice).verify("alice") == read_manifest(alice)


def test_every_cut_is_noticed(alice: Path) -> None:
    path = largest(alice)
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 100).astype(int):
        path.write_bytes(data[:cut])
        assert f"source 'alice': {path} has {cut} bytes, not {len(data)} as in its manifest" in said_of(alice)


def places(path: Path) -> dict[str, list[int]]:
    """Return 100 places in a tar by what lies there: headers, contents, the padding after a content, the end."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    ends = [info.offset_data + info.size for info in members]
    pads = [end + 1 for end in ends if end % 512]
    draw = np.random.default_rng(0)
    return {
        "header": [int(info.offset + draw.integers(500)) for info in draw.choice(members, 40)],
        "content": [int(info.offset_data + draw.integers(info.size)) for info in draw.choice(members, 40)],
        "padding": [int(place) for place in draw.choice(pads, 15)],
        "end": [ends[-1] + 512 * k for k in range(1, 6)],
    }


@pytest.mark.parametrize("where", ["header", "content", "padding", "end"])
def test_every_flipped_bit_is_noticed(where: str, alice: Path) -> None:
    path = largest(alice)
    data = path.read_bytes()
    for turn, place in enumerate(places(path)[where]):
        path.write_bytes(flipped(data, place, turn % 8))
        assert f"source 'alice': {path} has sha256" in said_of(alice)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_cut_that_the_manifest_agrees_with_is_noticed_or_lost_nothing(alice: Path) -> None:
    path, whole = largest(alice), samples(alice)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    for cut in np.linspace(0, len(data) - 1, 100).astype(int):
        path.write_bytes(data[:cut])
        agree(path)
        if cut < last.offset_data + -(-last.size // 512) * 512:
            assert str(path) in said_of(alice)
        else:
            assert samples(alice) == whole


def test_a_flipped_bit_that_the_manifest_agrees_with_is_noticed_or_changed_nothing(alice: Path) -> None:
    path, whole = largest(alice), samples(alice)
    data, noticed = path.read_bytes(), 0
    for kind, found in places(path).items():
        for turn, place in enumerate(found):
            path.write_bytes(flipped(data, place, turn % 8))
            agree(path)
            try:
                assert samples(alice) == whole
            except ShardError:
                noticed += 1
                assert kind in ("header", "content")
    assert noticed >= 60


class Payload:
    """Unpickling this creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


FOREIGN_NAMES = [
    *(f"{stem}.{suffix}" for stem in ("evil", "alice-00") for suffix in ("pkl", "pyd", "pth", "npy", "jpg", "PNG")),
    *("../x.png", "/etc/x.png", "a/b.png", "..png", ".png", "x", "x.y.png", "x.png\n", "__meta__", "ä.png"),
]


@pytest.mark.parametrize("name", FOREIGN_NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_a_foreign_member_is_refused_and_not_run(name: str, first: bool, alice: Path, tmp_path: Path) -> None:
    path, trace = largest(alice), tmp_path / "trace"
    foreign = [member(name, pickle.dumps(Payload(trace)))]
    save_tar(path, foreign + members_of(path) if first else members_of(path) + foreign)
    agree(path)
    assert f"{path}: member {name!r} is not KEY.png or KEY.json: write the shards again" in said_of(alice)
    assert not trace.exists()


KINDS = ("SYMTYPE", "LNKTYPE", "DIRTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["evil.png", "evil.json"])
def test_a_member_that_is_no_plain_file_is_refused(kind: str, name: str, alice: Path) -> None:
    path = largest(alice)
    save_tar(path, [*members_of(path), member(name, kind=getattr(tarfile, kind))])
    agree(path)
    assert f"{path}: member '{name}' is no plain file" in said_of(alice)


def promising(name: str, kind: bytes, size: int) -> bytes:
    """Return a tar whose first header promises a content of `size` bytes that is not there."""
    info = member(name, kind=kind)[0]
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize("kind", ["REGTYPE", "GNUTYPE_LONGNAME", "XHDTYPE"])
@pytest.mark.parametrize("size", [2**20, 2**40, 2**62])
def test_a_promise_of_more_bytes_than_there_are_is_refused(kind: str, size: int, alice: Path) -> None:
    path = largest(alice)
    path.write_bytes(promising("alice-00.png", getattr(tarfile, kind), size))
    agree(path)
    how = "is longer than the rest of the file" if kind == "REGTYPE" else "cannot be read"
    assert str(path) in (text := said_of(alice))
    assert how in text


def test_headers_within_headers_are_refused(alice: Path) -> None:
    path = largest(alice)
    header = member("x.png", kind=tarfile.GNUTYPE_LONGNAME)[0].tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(header * 3000)
    agree(path)
    assert f"{path} cannot be read" in said_of(alice)


def test_a_compressed_tar_is_refused(alice: Path) -> None:
    path = largest(alice)
    path.write_bytes(gzip.compress(path.read_bytes()))
    agree(path)
    assert f"{path} cannot be read" in said_of(alice)


def test_reading_stops_at_the_first_foreign_member(tmp_path: Path) -> None:
    good = [member("a.png", b"1"), member("a.json", b'{"label": "x"}')]
    save_tar(tmp_path / "00000.tar", [*good, member("b.png"), member("b.json", b'{"label": "y"}'), member("c.pkl")])
    stream = read_shard(tmp_path / "00000.tar")
    assert next(stream) == RawSample("a", b"1", "x", tmp_path / "00000.tar")
    with pytest.raises(ShardError, match=r"member 'c\.pkl'"):
        list(stream)
