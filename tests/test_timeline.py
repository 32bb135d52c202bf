"""Arrivals and departures. Oracle: the events by hand."""

import pytest

from cdm_lightning.errors import BadInput
from cdm_lightning.timeline import Event, timeline


def test_events_by_hand() -> None:
    assert timeline(["c", "a", "b", "d"], ["2:c", " 4 : a", "4:d"]) == [
        Event(1, "c", (), ("c",)),
        Event(2, "a", (), ("c", "a")),
        Event(2, None, ("c",), ("a",)),
        Event(3, "b", (), ("a", "b")),
        Event(4, "d", (), ("a", "b", "d")),
        Event(4, None, ("a", "d"), ("b",)),
    ]


def test_names() -> None:
    assert [event.name for event in timeline(["a", "b", "c"], ["3:a", "3:b"])] == ["+ a", "+ b", "+ c", "- a, b"]


@pytest.mark.parametrize(
    ("order", "forget_at", "said"),
    [
        ([], [], "--order names no source"),
        (["a", "b", "a"], [], "source 'a' is in --order 2 times"),
        (["a", "b"], ["cat"], "--forget-at has 'cat': expected STEP:SOURCE"),
        (["a", "b"], ["-1:a"], "--forget-at has '-1:a': expected STEP:SOURCE"),
        (["cat", "dog"], ["2:cet"], "'cet' is not in --order, cat, dog; did you mean 'cat'"),
        (["a", "b"], ["3:a"], "there is no step 3; --order has the steps 1 to 2"),
        (["a", "b"], ["0:a"], "there is no step 0"),
        (["a", "b"], ["1:b"], "--forget-at 1:b: 'b' is not there then"),
        (["a", "b", "c"], ["2:a", "3:a"], "--forget-at 3:a: 'a' is not there then"),
        (["a", "b"], ["2:a", "2:a"], "leaves twice"),
        (["a", "b"], ["2:a", "2:b"], "no source would be left in the model"),
    ],
)
def test_what_cannot_be(order: list[str], forget_at: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        timeline(order, forget_at)
    assert said in str(caught.value)
