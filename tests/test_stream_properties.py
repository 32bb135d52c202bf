"""The training stream: its order against a slow reference, and how workers and ranks share it."""

import random
import tarfile
from itertools import count, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdm_lightning.errors import ShardError
from datamodules.manifest import read_manifest
from datamodules.stages import batches, own_batches, training_order, training_stream
from tests.made_shards import agree, members_of, save_tar, shard_of_key
from tests.reference_stream import Case, Written, cases, hashed, reference_batches, reference_epoch, write_keys

PROPERTY = settings(derandomize=True, deadline=None, max_examples=25)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> "Written":
    return Written(tmp_path_factory.mktemp("written"))


@given(cases(), st.integers(0, 3))
@PROPERTY
def test_an_epoch_is_that_of_the_reference_with_every_used_key_once(written: Written, case: Case, epoch: int) -> None:
    folder, manifest = written.of(case)
    order = [sample.key for sample in training_order(folder, manifest, set(case.used), seed=case.seed, epoch=epoch)]
    assert order == reference_epoch(case, epoch)
    assert sorted(order) == sorted(case.used)


@given(cases(), st.integers(0, 3), st.data())
@PROPERTY
def test_an_excluded_sample_leaves_the_order_of_the_others(
    written: Written, case: Case, epoch: int, data: st.DataObject
) -> None:
    folder, manifest = written.of(case)
    fewer = set(data.draw(st.lists(st.sampled_from(case.used), min_size=1, unique=True)))

    def order(used: set[str]) -> list[str]:
        return [sample.key for sample in training_order(folder, manifest, used, seed=case.seed, epoch=epoch)]

    assert order(fewer) == [key for key in order(set(case.used)) if key in fewer]


def test_the_order_depends_on_keys_and_number_of_shards_not_on_how_they_lie_there(tmp_path: Path) -> None:
    keys = [f"k{k}" for k in range(30)]
    orders = []
    for name, shards in (("one", 3), ("two", 3), ("three", 2)):
        folder = write_keys(tmp_path / name, "ann", keys if name != "two" else keys[::-1], shards)
        if name == "two":
            for path in folder.glob("*.tar"):
                members = members_of(path)
                pairs = [members[k : k + 2] for k in range(0, len(members), 2)]
                random.Random(0).shuffle(pairs)
                save_tar(path, [member for pair in pairs for member in pair[::-1]])
                agree(path)
        stream_ = training_order(folder, read_manifest(folder), set(keys), seed=1, epoch=2)
        orders.append([sample.key for sample in stream_])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_epochs_seeds_and_sources_have_orders_of_their_own(tmp_path: Path) -> None:
    keys = [f"k{k}" for k in range(30)]
    folders = [write_keys(tmp_path, source, keys, 3) for source in ("ann", "ben")]
    orders = {
        tuple(sample.key for sample in training_order(folder, read_manifest(folder), set(keys), seed=s, epoch=e))
        for folder in folders
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 8


@given(cases(), st.integers(0, 60))
@PROPERTY
def test_the_stream_starts_at_any_sample(written: Written, case: Case, start: int) -> None:
    folder, manifest = written.of(case)
    found = training_stream(folder, manifest, set(case.used), seed=case.seed, start=start)
    everything = [key for batch in reference_batches(case, 1, start + 40) for key in batch]
    assert [sample.key for sample in islice(found, 40)] == everything[start:]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
@PROPERTY
def test_ranks_and_workers_share_a_sequence(world: int, workers: int, number: int) -> None:
    """Every batch goes to one worker of one rank, and taking turns gives the sequence again."""
    everything = [[g] for g in range(number)]
    turns: dict[int, list[int]] = {}
    for rank in range(world):
        for worker in range(workers):
            own = own_batches(everything, rank=rank, world=world, worker=worker, workers=workers)
            for turn, batch in enumerate(own):
                turns[(turn * workers + worker) * world + rank] = batch
    assert [turns[g] for g in sorted(turns)] == everything
    assert sorted(turns) == list(range(number))


def test_a_used_sample_that_no_shard_has_is_noticed(tmp_path: Path) -> None:
    folder = write_keys(tmp_path, "ann", ["a", "b"], 2)
    with pytest.raises(ShardError, match=r"no shard in .*/ann has sample 'c' of the manifest"):
        list(training_order(folder, read_manifest(folder), {"a", "c"}, seed=0, epoch=0))


def test_a_shard_is_parsed_once_while_its_bytes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, opened, original = [f"k{k}" for k in range(9)], list[str](), tarfile.open
    folder = write_keys(tmp_path, "ann", keys, 2)
    monkeypatch.setattr(tarfile, "open", lambda name, *rest: opened.append(name.name) or original(name, *rest))
    stream = training_stream(folder, read_manifest(folder), set(keys), seed=0)
    passes = [list(islice(stream, len(keys))) for _ in range(3)]
    assert sorted(opened) == sorted(path.name for path in folder.glob("*.tar"))
    first, *others = ({sample.key: sample for sample in one} for one in passes)
    assert first.keys() == set(keys)
    assert all(other == first for other in others)


def test_a_shard_that_changes_after_it_was_parsed_is_noticed(tmp_path: Path) -> None:
    keys = [f"k{k}" for k in range(9)]
    folder = write_keys(tmp_path, "ann", keys, 1)
    stream = training_stream(folder, read_manifest(folder), set(keys), seed=0)
    sample = list(islice(stream, len(keys)))[-1]
    whole = bytearray(sample.shard.read_bytes())
    whole[whole.index(sample.png) + len(sample.png) // 2] ^= 1
    sample.shard.write_bytes(whole)
    with pytest.raises(ShardError, match="has another image than its manifest says"):
        next(stream)


def test_batches_of_a_finite_stream_end_with_a_shorter_one() -> None:
    assert [list(batch) for batch in batches(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []
    assert next(batches(count(), 2)) == [0, 1]


def test_the_reference_agrees_with_the_tars(tmp_path: Path) -> None:
    case = Case(16, 3, frozenset(), 0, "ann")
    folder = write_keys(tmp_path, "ann", case.keys, 3)
    expected = {key: f"{int.from_bytes(hashed('shard', key), 'big') % 3:05d}.tar" for key in case.keys}
    assert shard_of_key(folder) == expected
