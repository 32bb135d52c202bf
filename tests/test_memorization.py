"""Memorization. Oracles: planted copies, mirrored ones, and images of the same law that nothing was fitted on."""

import pytest
from torch import Tensor

from cdm_lightning.memorization import FEATURES, MIRRORED, PIXELS, Images, memorization, spaces
from tests.dummy_extractor import DummyExtractor, pictures

TRAINING, HELDOUT, N = 300, 500, 200


def images_of(pixels: Tensor) -> Images:
    return Images(pixels, DummyExtractor()(pixels))


@pytest.fixture(scope="module")
def law() -> Tensor:
    """Return images of one law: training, held-out, and as many new ones."""
    return pictures(TRAINING + HELDOUT + N, 0)


def test_copies_are_near_copies_in_pixels_and_features(law: Tensor) -> None:
    judges = spaces(images_of(law[:TRAINING]), images_of(law[TRAINING:-N]))
    found, pairs = memorization(images_of(law[:TRAINING].flip(0)), judges)
    for space in (PIXELS, FEATURES):
        assert found[space]["near_copies"]["value"] == 1.0
        assert found[space]["chance"] < 1e-100
    assert [pair.ratio for pair in pairs] == sorted(pair.ratio for pair in pairs)
    assert all(pair.training == TRAINING - 1 - pair.sample for pair in pairs)


def test_mirrored_copies_are_found_as_such(law: Tensor) -> None:
    judges = spaces(images_of(law[:TRAINING]), images_of(law[TRAINING:-N]))
    found, pairs = memorization(images_of(law[:TRAINING].flip(-1)), judges)
    assert found[MIRRORED]["near_copies"]["value"] == 1.0
    assert found[PIXELS]["near_copies"]["value"] < 0.1
    assert {pair.space for pair in pairs} == {MIRRORED}
    assert [pair.training for pair in sorted(pairs, key=lambda pair: pair.sample)] == list(range(TRAINING))


def test_new_images_have_about_one_near_copy_in_a_hundred(law: Tensor) -> None:
    found, _ = memorization(images_of(law[-N:]), spaces(images_of(law[:TRAINING]), images_of(law[TRAINING:-N])))
    for space in (PIXELS, FEATURES):
        share = found[space]["near_copies"]
        assert share["low"] < 0.01 < share["high"]
        assert found[space]["chance"] > 0.05
        assert found[space]["median"] == pytest.approx(found[space]["heldout_median"], rel=0.1)


def test_a_mirrored_near_copy_is_as_near_as_another_one(law: Tensor) -> None:
    found, _ = memorization(images_of(law[-N:]), spaces(images_of(law[:TRAINING]), images_of(law[TRAINING:-N])))
    assert found[MIRRORED]["threshold"] <= found[PIXELS]["threshold"]


def test_without_an_extractor_there_are_no_features(law: Tensor) -> None:
    pixels = Images(law[:N], None)
    assert list(memorization(pixels, spaces(pixels, Images(law[-N:], None)))[0]) == [PIXELS, MIRRORED]


def test_where_held_out_images_are_copies_copies_are_no_sign_but_are_counted(law: Tensor) -> None:
    same = Images(law[:N], None)
    found, pairs = memorization(same, spaces(same, same))
    assert found[PIXELS]["near_copies"]["value"] == 1.0
    assert found[PIXELS]["chance"] == 1.0
    assert {pair.ratio for pair in pairs} == {1.0}
