"""Average forgetting and backward transfer. Oracles: a matrix by hand, and that errors are accuracies turned round."""

import pytest

from cdm_lightning.transfer import backward_transfer_by_source, forgetting_by_source, mean

ACCURACIES = [{"a": 0.9}, {"a": 0.95, "b": 0.8}, {"a": 0.7, "b": 0.85, "c": 0.6}]


def test_a_matrix_by_hand() -> None:
    assert forgetting_by_source(ACCURACIES, less_is_better=False) == pytest.approx({"a": 0.25, "b": -0.05})
    assert backward_transfer_by_source(ACCURACIES, less_is_better=False) == pytest.approx({"a": -0.2, "b": 0.05})
    assert mean({"a": 0.25, "b": -0.05}) == pytest.approx(0.1)


def test_errors_are_accuracies_turned_round() -> None:
    errors = [{source: 1 - value for source, value in row.items()} for row in ACCURACIES]
    for measure in (forgetting_by_source, backward_transfer_by_source):
        assert measure(errors, True) == pytest.approx(measure(ACCURACIES, False))


def test_who_left_does_not_count() -> None:
    rows = [{"a": 0.1}, {"a": 0.3, "b": 0.2}, {"b": 0.2}, {"b": 0.5, "c": 0.1}]
    assert forgetting_by_source(rows, less_is_better=True) == pytest.approx({"b": 0.3})
    assert backward_transfer_by_source(rows, less_is_better=True) == pytest.approx({"b": -0.3})


def test_nothing_before_is_nothing_forgotten() -> None:
    assert forgetting_by_source([], True) == forgetting_by_source(ACCURACIES[:1], False) == {}
    assert mean({}) is None


def test_what_is_constant_is_not_forgotten() -> None:
    rows = [{"a": 0.1}, {"a": 0.1, "b": 0.3}, {"a": 0.1, "b": 0.3}]
    assert forgetting_by_source(rows, True) == backward_transfer_by_source(rows, True) == {"a": 0, "b": 0}
