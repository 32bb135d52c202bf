"""The ledger. Oracle: the chain is recomputed here from the bytes of the file."""

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cdm_lightning import ledger
from cdm_lightning.errors import StoreError

Lines = list[bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a ledger of four lines."""
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "added", "a", None, "1" * 64)
    ledger.append(path, "added", "b", None, "2" * 64)
    ledger.append(path, "refitted", "a", "1" * 64, "3" * 64)
    ledger.append(path, "forgotten", "b", "2" * 64, None)
    return path


def sealed_anew(lines: Lines) -> Lines:
    values = json.loads(lines[1]) | {"source": "c", "seal": ""}
    seal = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return [lines[0], json.dumps(values | {"seal": seal}, sort_keys=True).encode() + b"\n", *lines[2:]]


def deleted_first(lines: Lines) -> Lines:
    return lines[1:]


def deleted_inner(lines: Lines) -> Lines:
    return [lines[0], *lines[2:]]


def swapped(lines: Lines) -> Lines:
    return [lines[0], lines[2], lines[1], lines[3]]


def doubled(lines: Lines) -> Lines:
    return [lines[0], lines[0], *lines[1:]]


def test_entries_come_back(path: Path) -> None:
    entries = ledger.read(path)
    assert [(e.event, e.source, e.before, e.after) for e in entries] == [
        ("added", "a", None, "1" * 64),
        ("added", "b", None, "2" * 64),
        ("refitted", "a", "1" * 64, "3" * 64),
        ("forgotten", "b", "2" * 64, None),
    ]
    ledger.verify(path)


def test_each_line_is_sorted_json_with_the_hash_of_the_line_before(path: Path) -> None:
    lines = path.read_text().split("\n")[:-1]
    expected = ["0" * 64, *(hashlib.sha256(line.encode()).hexdigest() for line in lines[:-1])]
    assert [json.loads(line)["previous"] for line in lines] == expected
    for line in lines:
        assert list(json.loads(line)) == ["after", "before", "date", "event", "previous", "seal", "source"]


def test_the_date_is_utc_in_seconds(path: Path) -> None:
    date = datetime.fromisoformat(ledger.read(path)[-1].date)
    assert date.utcoffset() == timedelta(0)
    assert date.microsecond == 0
    assert abs(datetime.now(UTC) - date) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("tamper", "line"), [(deleted_first, 1), (deleted_inner, 2), (swapped, 2), (doubled, 2), (sealed_anew, 3)]
)
def test_verify_names_the_line_that_does_not_follow(path: Path, tamper: Callable[[Lines], Lines], line: int) -> None:
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StoreError, match=rf"ledger\.jsonl, line {line}: the chain is broken"):
        ledger.verify(path)


def test_verify_names_the_line_with_any_bit_flipped(path: Path) -> None:
    whole = path.read_bytes()
    starts = [0, *(k + 1 for k, byte in enumerate(whole) if byte == ord(b"\n"))]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        line = max(k for k, start in enumerate(starts, start=1) if start <= place)
        with pytest.raises(StoreError, match=rf"line {line}: "):
            ledger.verify(path)


def test_the_newest_entry_of_a_source(path: Path) -> None:
    newest = ledger.last(path, "a")
    assert newest == ledger.read(path)[2]
    assert ledger.last(path, "c") is None
    assert ledger.last(path.with_name("none"), "a") is None


@pytest.mark.parametrize("left", range(1, 40, 13))
def test_a_line_that_was_cut_is_named_until_the_next_one_takes_its_place(path: Path, left: int) -> None:
    whole = path.read_bytes()
    ledger.append(path, "added", "d", None, "5" * 64)
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:left])
    with pytest.raises(StoreError, match=r"line 5: this is no entry of a ledger"):
        ledger.verify(path)
    ledger.append(path, "added", "c", None, "4" * 64)
    assert path.read_bytes().startswith(whole)
    assert [entry.source for entry in ledger.read(path)] == ["a", "b", "a", "b", "c"]
    ledger.verify(path)


def test_a_line_with_other_keys_is_no_entry(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"event": "added"}\n')
    with pytest.raises(StoreError, match=r"line 1: this is no entry of a ledger"):
        ledger.read(tmp_path / "ledger.jsonl")


def test_no_ledger_has_no_lines(tmp_path: Path) -> None:
    assert ledger.read(tmp_path / "ledger.jsonl") == []
    ledger.verify(tmp_path / "ledger.jsonl")


def test_an_append_waits_for_the_lock(path: Path) -> None:
    before = path.read_bytes()
    writer = threading.Thread(target=ledger.append, args=(path, "added", "c", None, "4" * 64))
    with ledger.locked(path.with_name("ledger.lock")):
        writer.start()
        writer.join(timeout=0.3)
        assert writer.is_alive()
        assert path.read_bytes() == before
    writer.join(timeout=60)
    assert ledger.read(path)[-1].source == "c"
    ledger.verify(path)


def test_a_last_line_that_was_written_in_another_way_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "added", "a", None, "1" * 64)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(StoreError, match="line 1: the line was changed"):
        ledger.verify(path)


def test_nothing_is_left_of_a_cut_line_that_was_longer_than_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "added", "a", None, "1" * 64)
    with path.open("ab") as file:
        file.write(b"x" * 2000)
    ledger.append(path, "forgotten", "a", "1" * 64, None)
    ledger.verify(path)
    assert [entry.event for entry in ledger.read(path)] == ["added", "forgotten"]
