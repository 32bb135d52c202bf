"""Changed settings are noticed once shards are there; what somebody else's tool wrote is taken as it is."""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cdm_lightning.errors import BadInput, ShardError
from datamodules import ShardDataModule
from datamodules.agreement import shortest_fraction
from datamodules.splits import heldout_draw, public_draw
from tests.made_shards import change_manifest, content, noise, save_images, write

Settings = dict[str, Any]
DIGITS: Settings = {"heldout_fraction": 0.1, "public_fraction": 0.4, "shards_per_source": 4, "public_classes": [0, 8]}
RANDOM: Settings = {"heldout_fraction": 0.25, "public_fraction": 0.3, "shards_per_source": 3, "split": "random:3"}
WRITTEN = {"digits": DIGITS, "random": RANDOM}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits by class and in random parts."""
    folder = tmp_path_factory.mktemp("agreement")
    for name, written in WRITTEN.items():
        ShardDataModule(str(folder / name), **written).prepare()
    return folder


@pytest.mark.parametrize("name", ["digits", "random"])
def test_the_settings_that_were_written_with_are_accepted(name: str, roots: Path) -> None:
    before = content(roots / name)
    ShardDataModule(str(roots / name), **WRITTEN[name]).prepare()
    assert content(roots / name) == before


@pytest.mark.parametrize(
    ("name", "changed", "fault"),
    [
        ("digits", {"heldout_fraction": 0.2}, "data.heldout_fraction is 0.2, .* were written with 0.1: set it to that"),
        ("digits", {"heldout_fraction": 0.0}, "data.heldout_fraction is 0.0, .* were written with 0.1: set it to that"),
        ("random", {"heldout_fraction": 0.24}, "heldout_fraction is 0.24, .* were written with 0.25: set it to that"),
        ("digits", {"public_fraction": 0.0}, "data.public_fraction is 0.0, .* were written with 0.4: set it to that"),
        ("digits", {"public_fraction": 0.41}, "public_fraction is 0.41, .* were written with 0.4: set it to that"),
        ("random", {"public_fraction": 0.5}, "data.public_fraction is 0.5, .* were written with 0.3: set it to that"),
        ("digits", {"shards_per_source": 8}, "data.shards_per_source is 8, .* were written with 4: set it to that"),
        ("random", {"shards_per_source": 1}, "data.shards_per_source is 1, .* were written with 3: set it to that"),
        ("random", {"split": "random:4"}, "data.split is random:4, .* were written with random:3: set it to that"),
        ("random", {"split": "class"}, "data.split is class, .* were written with random:3: set it to that"),
        ("random", {"split": None}, "data.split is class, .* were written with random:3: set it to that"),
        ("digits", {"split": "random:10"}, "data.split is random:10, .* hold no such parts: leave it out"),
        ("digits", {"public_classes": [0, 8, 3]}, "have images of class 'digit3' in source 'digit3': leave that class"),
        ("digits", {"public_classes": [8]}, "have images of class 'digit0' in public: name that class too"),
        ("digits", {"public_classes": ["digit0"]}, "have images of class 'digit8' in public: name that class too"),
    ],
)
def test_changed_settings_are_told(name: str, changed: Settings, fault: str, roots: Path) -> None:
    with pytest.raises(ShardError) as caught:
        ShardDataModule(str(roots / name), **WRITTEN[name] | changed).prepare()
    assert re.search(fault, str(caught.value))
    assert str(caught.value).endswith(", or write them elsewhere")
    assert f"but the shards in '{roots / name}' " in str(caught.value)


@pytest.mark.parametrize("sources", ["digit3", ["digit3", "digit7"], []])
def test_a_part_of_the_sources_shows_the_same(sources: str | list[str], roots: Path) -> None:
    root = str(roots / "digits")
    ShardDataModule(root, **DIGITS, sources=sources).prepare()
    with pytest.raises(ShardError, match="heldout_fraction is 0.5, .* were written with 0.1"):
        ShardDataModule(root, **DIGITS | {"heldout_fraction": 0.5}, sources=sources).prepare()


def refusal(root: Path, values: Settings) -> str | None:
    try:
        ShardDataModule(str(root), **values).prepare()
    except ShardError as error:
        return str(error)
    return None


@given(
    st.sampled_from(["heldout_fraction", "public_fraction"]),
    st.floats(0, 0.9).map(lambda fraction: round(fraction, 2)),
    st.floats(0, 0.9).map(lambda fraction: round(fraction, 2)),
    st.integers(1, 9),
    st.integers(1, 9),
)
@settings(derandomize=True, deadline=None, max_examples=12)
def test_what_is_told_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, setting: str, written: float, said: float, shards: int, shards_said: int
) -> None:
    """Whatever is refused: setting it as the text says ends in acceptance, after one step per setting at most."""
    folder = tmp_path_factory.mktemp("told")
    save_images(folder / "images", count=12)
    fractions = {"public_fraction": 0.0, "heldout_fraction": 0.25, setting: written}
    write(folder / "root", folder / "images", **fractions, shards_per_source=shards)
    values: Settings = {"from_": "folder", "input": str(folder / "images")}
    values |= fractions | {setting: said, "shards_per_source": shards_said}
    for _ in range(2):
        if text := refusal(folder / "root", values):
            told = re.search(r"data\.(\w+) is .* written with ([0-9.]+): set it to that", text)
            assert told is not None
            values[told[1]] = type(values[told[1]])(told[2])
    assert refusal(folder / "root", values) is None


@pytest.mark.parametrize("key", ["alice-03", "bob-11"])
def test_the_draw_of_a_sample_itself_is_a_fraction(key: str, tmp_path: Path) -> None:
    """A sample whose draw is exactly the fraction is on the other side of it, when written and when compared."""
    images = save_images(tmp_path / "images", count=12)
    fractions = {"heldout_fraction": heldout_draw(key), "public_fraction": public_draw(key)}
    write(tmp_path / "root", images, **fractions)
    assert refusal(tmp_path / "root", {"from_": "folder", "input": str(images), **fractions}) is None


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Shards whose parts, tars and sources follow no hash of ours, with owners who are not classes."""
    save_images(tmp_path / "images")
    write(tmp_path / "root", tmp_path / "images", public_fraction=0, heldout_fraction=0)
    shutil.copytree(tmp_path / "root" / "bob", tmp_path / "root" / "public")
    draw = random.Random(0)

    def change(values: dict[str, Any], source: str) -> None:
        values["source"] = source
        for key, sample in sorted(values["samples"].items()):
            sample |= {"part": draw.choice(["train", "heldout"]), "sha256": f"{source} {key}"}
        names = dict(zip(sorted(values["shards"]), ("00007.tar", "00001.tar", "00003.tar", "00008.tar"), strict=True))
        values["shards"] = {names[name]: shard for name, shard in values["shards"].items()}

    for source in ("alice", "bob", "public"):
        change_manifest(tmp_path / "root" / source, lambda values, source=source: change(values, source))
    return tmp_path / "root"


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("shards", [1, 4, 9])
def test_foreign_shards_are_taken_as_they_are(fraction: float, shards: int, foreign: Path) -> None:
    ShardDataModule(str(foreign), heldout_fraction=fraction, shards_per_source=shards).prepare()


def test_owners_are_no_classes(tmp_path: Path) -> None:
    for seed, (owner, label) in enumerate((("ann", "cat"), ("ann", "dog"), ("ben", "cat"))):
        (tmp_path / "images" / owner / label).mkdir(parents=True)
        noise(seed).save(tmp_path / "images" / owner / label / "x.png")
    write(tmp_path / "root", tmp_path / "images", public_fraction=0)
    ShardDataModule(str(tmp_path / "root"), heldout_fraction=0.25).prepare()
    with pytest.raises(ShardError, match="data.split is class, .* class 'cat' in source 'ann': leave it out, or write"):
        ShardDataModule(str(tmp_path / "root"), heldout_fraction=0.25, split="class").prepare()


def test_an_image_that_came_into_public_and_a_source_by_two_runs_is_told(tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", count=6)
    write(tmp_path / "root", images, public_fraction=0.5)
    write(tmp_path / "root", images, public_fraction=0)
    values: Settings = {"from_": "folder", "input": str(images), "heldout_fraction": 0.25}
    with pytest.raises(ShardError, match="source 'alice' and public in .* share [1-6] images, so the backbone would"):
        ShardDataModule(str(tmp_path / "root"), **values).prepare()
    public = ShardDataModule(str(tmp_path / "root")).manifest("public").samples
    (tmp_path / "keys").write_text("\n".join(public))
    ShardDataModule(str(tmp_path / "root"), **values, exclude=str(tmp_path / "keys")).prepare()


@given(st.floats(0, 1), st.floats(0, 1))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_the_shortest_fraction_lies_between_and_none_is_shorter(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assume(low < high)
    found = shortest_fraction(low, high)
    assert low < found <= high
    digits = len(repr(found).partition(".")[2]) - (found == int(found))
    if "e" not in repr(found) and digits <= 5:
        shorter = (k / 10 ** (digits - 1) for k in range(10 ** (digits - 1) + 1)) if digits else ()
        assert not any(low < number <= high for number in shorter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 8001}, "image_size must be at most 8000, but is 8001"),
        ({"shards_per_source": 100_001}, "shards_per_source must be at most 100000, but is 100001"),
        ({"heldout_fraction": float("nan")}, "heldout_fraction must be at least 0 and below 1, but is nan"),
        ({"split": ""}, "split must be one of class, folder, list, random:N with a number N, but is ''"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ShardDataModule(**settings)
