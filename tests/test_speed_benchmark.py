"""The speed benchmark. Oracles: sleeps of known length, a file of known size, rows written by hand."""

import time
from pathlib import Path

import torch

from benchmarks.speed import table_of
from benchmarks.speed_rows import Nothing, Ratio, _bytes_read, in_turns


def test_a_ratio_is_of_pairs_in_turns() -> None:
    order = []

    def sleeping(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    found = in_turns(lambda: sleeping("one", 0.2), lambda: sleeping("other", 0.02), pairs=3)
    assert order == ["one", "other"] * 4
    assert found.seconds >= 0.2
    assert found.least <= found.ratio <= found.most
    assert 2 < found.ratio < 10.1


def test_bytes_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    before = _bytes_read()
    (tmp_path / "file").read_bytes()
    assert 300_000 <= _bytes_read() - before < 400_000


def test_what_costs_nothing_says_nothing() -> None:
    x, sigma = torch.ones(2, 1, 2, 2), torch.ones(2)
    assert torch.equal(Nothing()(x, sigma), x)
    assert Nothing().log_density(x, sigma).tolist() == [0.0, 0.0]


def test_the_table_has_what_was_found() -> None:
    ratio = vars(Ratio(0.5, 0.712, 0.69, 0.75))
    row = {"N": 8, "strategy": "routed", "start": "switch", "evaluations": 18.0, "plain_evaluations": 35.0}
    opening = {"seconds": 1.234, "MB_read": 20.04}
    text = table_of(
        {
            "many": 1000,
            "sampling": [row | {"to_plain": ratio, "to_same_switch": ratio}],
            "opening": {"of_five": opening, "of_many": opening},
            "sampler_alone": ratio,
            "step_of_tokens": ratio,
            "images_per_second": 9876.5,
            "fitting": {"images": 6000, "seconds_of_one_source": 4.25, "four_in_one_fit": ratio, "same_bytes": True},
        }
    )
    assert "| 8 | routed | switch | 18 / 35 | 0.71 (0.69 to 0.75) | 0.71 (0.69 to 0.75) |" in text
    assert "| the same 5 of 1000 | 1.23 s, 20.0 MB read |" in text
    assert "| a source of 6000 images, `none` | 4.2 s |" in text
