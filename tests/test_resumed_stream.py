"""A stream that starts at batch k of a rank goes on as one that was never interrupted."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdm_lightning.errors import ShardError
from datamodules import ShardDataModule, stages, stream
from datamodules.stream import Share, SourceStream
from tests.reference_stream import Case, Written, cases, reference_batches

PROPERTY = settings(derandomize=True, deadline=None, max_examples=25)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> "Written":
    return Written(tmp_path_factory.mktemp("written"))


class Turns:
    """What DataLoader does: asks its workers in turn for a batch each, always beginning with the first."""

    def __init__(self, source: SourceStream, workers: int, patch: pytest.MonkeyPatch) -> None:
        self.streams = [self.started(source, worker, workers, patch) for worker in range(workers)]

    @staticmethod
    def started(source: SourceStream, worker: int, workers: int, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        info = SimpleNamespace(id=worker, num_workers=workers) if workers > 1 else None
        patch.setattr(stream, "get_worker_info", lambda: info)
        iterator = iter(source)
        first = next(iterator)
        assert not isinstance(first, ShardError)
        yield first["key"]
        for item in iterator:
            assert not isinstance(item, ShardError)
            yield item["key"]

    def take(self, number: int) -> list[list[str]]:
        return [next(self.streams[turn % len(self.streams)]) for turn in range(number)]


@given(cases(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 25))
@PROPERTY
def test_a_resumed_stream_goes_on_as_if_undisturbed(
    written: Written, case: Case, size: int, world: int, workers: int, first: int
) -> None:
    folder, manifest = written.of(case)
    number = 7
    everything = reference_batches(case, size, world * (first + number))
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            source = SourceStream(
                folder,
                manifest,
                set(case.used),
                seed=case.seed,
                batch_size=size,
                share=Share(rank, world),
                first_batch=first,
            )
            assert Turns(source, workers, patch).take(number) == everything[rank::world][first:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume") / "digits"
    ShardDataModule(str(root)).prepare()
    return root


def real_batches(root: Path, rank: int, world: int, workers: int, first: int) -> Iterator[dict[str, object]]:
    data = ShardDataModule(str(root), batch_size=40, num_workers=workers, seed=3)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    data.open("digit7", first_batch=first)
    return iter(data.train_dataloader())


@pytest.mark.parametrize(("workers", "world", "first"), [(0, 1, 3), (0, 2, 4), (1, 1, 5), (2, 1, 3), (2, 2, 2)])
def test_the_data_module_resumes_with_the_same_images(workers: int, world: int, first: int, root: Path) -> None:
    for rank in range(world):
        undisturbed = list(islice(real_batches(root, rank, world, 0, 0), first, first + 5))
        resumed = list(islice(real_batches(root, rank, world, workers, first), 5))
        for one, two in zip(undisturbed, resumed, strict=True):
            assert one["key"] == two["key"]
            assert one["label"] == two["label"]
            assert torch.equal(one["image"], two["image"])


def test_skipped_epochs_are_not_read_and_skipped_batches_not_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = [], []
    whole_shard, decode_sample = stages.whole_shard, stages.decode_sample
    monkeypatch.setattr(stages, "whole_shard", lambda *args: read.append(args[0].name) or whole_shard(*args))
    monkeypatch.setattr(stages, "decode_sample", lambda *args: decoded.append(args[0].key) or decode_sample(*args))
    batch = next(real_batches(root, 0, 1, 0, 1_000_001))
    assert len(read) <= 2 * len(list((root / "digit7").glob("*.tar")))
    assert decoded == batch["key"]


def test_the_global_generator_is_left_alone(root: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(real_batches(root, 0, 1, 0, 0))
    next(real_batches(root, 0, 1, 1, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_batch_is_refused(root: Path) -> None:
    with pytest.raises(Exception, match="first_batch must be at least 0, but is -1"):
        ShardDataModule(str(root)).open("digit7", first_batch=-1)
