"""Splits are functions of a sample's key alone: removals move nobody, fractions are met, draws are independent."""

import math
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.encoding import encode_sources
from datamodules.names import HELDOUT
from datamodules.plan import Plan
from datamodules.records import Collection, Record
from datamodules.splits import in_public_fraction, part_of, random_part, shard_of
from datamodules.writer import write_sources
from tests.made_shards import shard_of_key

KEYS = st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=25, unique=True)
FRACTIONS = st.floats(0, 1, exclude_max=True)
OWNERS = ("ann", "ben")
PROPERTY = settings(derandomize=True, deadline=None, max_examples=25)


def images_of(keys: list[str]) -> Collection:
    """Return images, each with an owner that its key names; all look the same."""
    look = partial(Image.new, "L", (1, 1))
    return Collection([Record(key, "x", OWNERS[len(key) % 2], key, look) for key in keys], ["x"])


Placed = dict[str, tuple[str, str, str]]


def placed(root: Path, keys: list[str], plan: Plan) -> Placed:
    """Write shards and return source, part and tar of every key."""
    sources = encode_sources(images_of(keys), plan)
    write_sources(root, sources, plan)
    return {
        key: (source, sources[source][key].sample.part, tar)
        for source in sources
        for key, tar in shard_of_key(root / source).items()
    }


@given(KEYS, st.data(), st.sampled_from(["list", "random:3"]), FRACTIONS, FRACTIONS, st.integers(1, 5))
@PROPERTY
def test_removing_samples_moves_no_other(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[str],
    data: st.DataObject,
    split: str,
    public: float,
    heldout: float,
    shards: int,
) -> None:
    plan = Plan("list", None, split, 1, 1, [], public, heldout, shards)
    left = data.draw(st.lists(st.sampled_from(keys), min_size=1, unique=True))
    folder = tmp_path_factory.mktemp("removal")
    before, after = placed(folder / "before", keys, plan), placed(folder / "after", left, plan)
    assert set(before) == set(keys)
    assert after == {key: before[key] for key in left}


@given(KEYS, FRACTIONS, FRACTIONS)
@PROPERTY
def test_a_larger_fraction_only_adds(keys: list[str], one: float, two: float) -> None:
    low, high = sorted((one, two))
    for key in keys:
        assert part_of(key, low) != HELDOUT or part_of(key, high) == HELDOUT
        assert not in_public_fraction(key, low) or in_public_fraction(key, high)
    assert not any(part_of(key, 0.0) == HELDOUT or in_public_fraction(key, 0.0) for key in keys)


NUMBER = 2000


def is_binomial(count: int, probability: float, number: int = NUMBER) -> bool:
    """Tell whether a count lies within five standard deviations (and one) of its expectation."""
    return abs(count - number * probability) <= 5 * math.sqrt(number * probability * (1 - probability)) + 1


@given(st.text("abcXYZ019_-", min_size=1, max_size=6), FRACTIONS, FRACTIONS, st.integers(1, 9))
@PROPERTY
def test_fractions_are_met_and_draws_do_not_depend_on_each_other(
    prefix: str, heldout: float, public: float, number: int
) -> None:
    keys = [f"{prefix}{k}" for k in range(NUMBER)]
    held = {key for key in keys if part_of(key, heldout) == HELDOUT}
    common = {key for key in keys if in_public_fraction(key, public)}
    first_tar = {key for key in keys if shard_of(key, number) == "00000.tar"}
    first_part = {key for key in keys if random_part(key, number) == "part0"}
    draws = ((held, heldout), (common, public), (first_tar, 1 / number), (first_part, 1 / number))
    for found, probability in draws:
        assert is_binomial(len(found), probability)
        for other, probability_of_other in draws:
            if found is not other:
                assert is_binomial(len(found & other), probability * probability_of_other)


@given(st.text("abc", max_size=3), st.integers(1, 9))
@PROPERTY
def test_every_tar_and_every_part_gets_its_share(prefix: str, number: int) -> None:
    keys = [f"{prefix}{k}" for k in range(NUMBER)]
    for k in range(number):
        assert is_binomial(sum(shard_of(key, number) == f"{k:05d}.tar" for key in keys), 1 / number)
        assert is_binomial(sum(random_part(key, number) == f"part{k}" for key in keys), 1 / number)
