"""Stratified classes. Oracles: a vote counted by hand, shares as fractions, the cards of a store."""

from collections import Counter
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm_lightning.errors import BadInput
from cdm_lightning.store import Store
from cdm_lightning.stratification import class_counts, quotas, spread, strata

COUNTS = st.lists(st.integers(1, 500), min_size=1, max_size=8).map(
    lambda many: dict(zip("abcdefgh", many, strict=False))
)


def test_largest_remainders_by_hand() -> None:
    """Shares of 10 seats: 4.7, 1.6, 1.58, 1.2, 0.61, 0.31; three seats are left for .7, .61 and .6."""
    counts = {"a": 47000, "b": 16000, "c": 15800, "d": 12000, "e": 6100, "f": 3100}
    assert quotas(counts, 10) == {"a": 5, "b": 2, "c": 1, "d": 1, "e": 1, "f": 0}
    assert quotas({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}, "of equal ones the first"


@given(COUNTS, st.integers(1, 200))
def test_every_quota_is_its_share_rounded_down_or_up(counts: dict[str, int], n: int) -> None:
    found, total = quotas(counts, n), sum(counts.values())
    assert sum(found.values()) == n
    assert all(abs(found[label] - Fraction(count * n, total)) < 1 for label, count in counts.items())


@given(COUNTS, st.integers(1, 100), st.integers(1, 100))
def test_classes_are_spread_and_do_not_depend_on_n_but_at_the_end(counts: dict[str, int], n: int, more: int) -> None:
    classes, total = spread(counts, n), sum(counts.values())
    assert Counter(classes) == {label: count for label, count in quotas(counts, n).items() if count}
    same = max(0, n - ceil(Fraction(total, min(counts.values()))))
    assert spread(counts, n + more)[:same] == classes[:same]
    for k in range(1, same + 1):
        ahead = {label: classes[:k].count(label) - Fraction(count * k, total) for label, count in counts.items()}
        assert max(ahead.values()) < 1


def test_the_first_columns_show_every_class() -> None:
    equal = dict.fromkeys("abcdefghij", 4000)
    assert "".join(spread(equal, 25)) == "abcdefghijabcdefghijabcde"
    assert "".join(spread({"a": 3, "b": 1}, 8)) == "aabaaaba"


@given(COUNTS, st.integers(1, 100))
def test_strata_are_the_places_of_each_class(counts: dict[str, int], n: int) -> None:
    found = strata(counts, n)
    assert sorted(k for indices in found.values() for k in indices) == list(range(n))
    assert [label for k in range(n) for label, indices in found.items() if k in indices] == spread(counts, n)


def test_counts_are_those_of_the_cards(parts: Path, store: Path) -> None:
    opened = Store.open(parts)
    cards = [opened.read_card(source).class_counts for source in ("part0", "part1")]
    assert class_counts(opened, ["part0", "part1"]) == {label: cards[0][label] + cards[1][label] for label in cards[0]}
    assert class_counts(opened, ["part1"]) == cards[1]
    with pytest.raises(BadInput, match=r"source 'digit0' of .* was fitted without class labels"):
        class_counts(Store.open(store), ["digit0"])
