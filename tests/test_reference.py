"""References. Oracles: the features of all images at once, a count of the extractor's calls, bytes of files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdm_lightning import reference
from cdm_lightning.feature_sums import FeatureSums
from cdm_lightning.near_copies import nearest_distances
from cdm_lightning.reference import Reference, in_shares, joined, source_reference
from cdm_lightning.tensor_files import write_tensors
from cdm_lightning.yardstick import Yardstick
from tests.dummy_extractor import DIMENSION, DummyExtractor, pictures

IMAGES = {"c": pictures(9, 2), "a": pictures(7, 0), "b": pictures(12, 1), "tiny": pictures(0, 3)}


def references(folder: Path, extractor: DummyExtractor) -> dict[str, Reference]:
    return {source: source_reference(folder, source, images, extractor) for source, images in IMAGES.items()}


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def assert_same(found: Reference, images: Tensor) -> None:
    features = DummyExtractor()(images)
    assert torch.equal(found.features, features)
    assert torch.equal(found.sums.outer, FeatureSums.of(features).outer)


@pytest.mark.parametrize("sources", [["a"], ["c", "a"], ["a", "b", "c"], ["tiny", "b"], ["tiny"]])
def test_a_subset_is_the_sum_of_its_sources(tmp_path: Path, sources: list[str]) -> None:
    """Oracle: its images as one set."""
    extractor = DummyExtractor()
    parts = references(tmp_path, extractor)
    before, found = extractor.calls, joined(parts, dict.fromkeys(sources, 1 / len(sources)))
    features = extractor(torch.cat([IMAGES[source] for source in sorted(sources)]))
    whole = FeatureSums.of(features)
    assert found.sums.n == whole.n == extractor.calls - before
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.sums.total, whole.total, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.sums.outer, whole.outer, rtol=1e-9, atol=0)


def test_a_source_that_has_more_images_than_are_looked_at_keeps_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 12 images stand for a share of 0.8, those of 0.15 are 2, evenly spaced, and those of 0.05 one."""
    monkeypatch.setattr(reference, "HELDOUT_IMAGES", 12)
    found = joined(references(tmp_path, DummyExtractor()), {"b": 0.8, "a": 0.15, "c": 0.05})
    features = DummyExtractor()(torch.cat([IMAGES["a"][[0, 3]], IMAGES["b"], IMAGES["c"][:1]]))
    assert torch.equal(found.features, features)
    torch.testing.assert_close(found.sums.outer, FeatureSums.of(features).outer, rtol=1e-9, atol=0)
    assert found.sums.n == 15


def test_features_are_computed_once(tmp_path: Path) -> None:
    extractor = DummyExtractor()
    first, second = references(tmp_path, extractor), references(tmp_path, extractor)
    assert extractor.calls == sum(len(images) for images in IMAGES.values())
    for source in IMAGES:
        assert_same(first[source], IMAGES[source])
        assert_same(second[source], IMAGES[source])


def test_every_source_has_its_own_folder_named_by_the_extractor(tmp_path: Path) -> None:
    references(tmp_path, DummyExtractor("effnet-lite0"))
    assert {path.name for path in tmp_path.iterdir()} == set(IMAGES)
    for source in IMAGES:
        assert only_file(tmp_path / source).match("effnet-lite0-????????????.safetensors")


def changed_pixel(images: Tensor) -> Tensor:
    changed = images.clone()
    changed[3, 1, 5, 2] ^= 1
    return changed


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(changed_pixel(IMAGES["a"]), id="one grey level"),
        pytest.param(IMAGES["a"][:-1], id="one image fewer"),
        pytest.param(IMAGES["a"].flip(0), id="another order"),
        pytest.param(IMAGES["a"].reshape(7, 3, 4, 16), id="another shape"),
    ],
)
def test_other_images_have_other_features(tmp_path: Path, images: Tensor) -> None:
    extractor = DummyExtractor()
    source_reference(tmp_path, "a", IMAGES["a"], extractor)
    assert_same(source_reference(tmp_path, "a", images, extractor), images)
    assert extractor.calls == len(IMAGES["a"]) + len(images)


@pytest.mark.parametrize("other", [DummyExtractor("other"), DummyExtractor(fingerprint="other weights")])
def test_another_extractor_has_other_features(tmp_path: Path, other: DummyExtractor) -> None:
    source_reference(tmp_path, "a", IMAGES["a"], DummyExtractor())
    before = other.calls
    source_reference(tmp_path, "a", IMAGES["a"], other)
    assert other.calls == before + len(IMAGES["a"])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def replace_by_another(path: Path) -> None:
    write_tensors(path, {"features": torch.zeros(7, DIMENSION)}, {"extractor": "dummy"})


@pytest.mark.parametrize("spoil", [flip_byte, cut, replace_by_another])
def test_a_damaged_or_foreign_file_is_replaced(tmp_path: Path, spoil: object) -> None:
    extractor = DummyExtractor()
    source_reference(tmp_path, "a", IMAGES["a"], extractor)
    path = only_file(tmp_path / "a")
    intact = path.read_bytes()
    assert callable(spoil)
    spoil(path)
    assert_same(source_reference(tmp_path, "a", IMAGES["a"], extractor), IMAGES["a"])
    assert extractor.calls == 2 * len(IMAGES["a"])
    assert path.read_bytes() == intact


def test_what_is_kept_of_a_source_does_not_depend_on_the_others(tmp_path: Path) -> None:
    references(tmp_path / "all", DummyExtractor())
    source_reference(tmp_path / "alone", "a", IMAGES["a"], DummyExtractor())
    all_of_them, alone = only_file(tmp_path / "all" / "a"), only_file(tmp_path / "alone" / "a")
    assert all_of_them.name == alone.name
    assert all_of_them.read_bytes() == alone.read_bytes()


def test_sources_stand_for_their_shares() -> None:
    prior = {"large": 0.7, "small": 0.2, "tiny": 0.1}
    assert in_shares({"large": 600, "small": 100, "tiny": 50}, prior) == {"large": 600, "small": 100, "tiny": 50}
    assert in_shares({"large": 1000, "small": 1000, "tiny": 50}, prior) == {"large": 1000, "small": 286, "tiny": 50}


def test_a_near_copy_is_what_is_rare_among_images_of_the_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out images of a source that has more than are looked at count for as many as its share."""
    monkeypatch.setattr(reference, "HELDOUT_IMAGES", 40)
    held_out = {"large": pictures(40, 1), "small": pictures(40, 2)}
    training = {"large": pictures(10, 3), "small": pictures(10, 4)}
    prior = {"large": 0.8, "small": 0.2}
    found = Yardstick.of(held_out, training, prior, DummyExtractor(), tmp_path, judge_images=0).copies
    expected = torch.cat([held_out["large"], held_out["small"][torch.arange(10) * 4]])
    assert found.distances.tolist() == nearest_distances(expected, torch.cat(list(training.values()))).tolist()
