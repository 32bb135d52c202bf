"""The speed benchmark. Oracles: sleeps of known length, a file of known size, rows written by hand."""

import time
from pathlib import Path

import torch

from benchmarks.speed_rows import Nothing, Ratio, Seconds, _bytes_read, in_turns
from benchmarks.speed_tables import tables_of


def test_a_ratio_is_of_pairs_in_turns() -> None:
    order = []

    def sleeping(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    found = in_turns(lambda: sleeping("one", 0.2), lambda: sleeping("other", 0.02), pairs=3)
    assert order == ["one", "other"] * 4
    assert found.seconds >= 0.2
    assert found.least <= found.ratio <= found.most
    assert 2 < found.ratio < 20


def test_bytes_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    before = _bytes_read()
    (tmp_path / "file").read_bytes()
    assert 300_000 <= _bytes_read() - before < 400_000


def test_what_costs_nothing_says_nothing() -> None:
    x, sigma = torch.ones(2, 1, 2, 2), torch.ones(2)
    assert torch.equal(Nothing()(x, sigma), x)
    assert Nothing().log_density(x, sigma).tolist() == [0.0, 0.0]


def test_a_ratio_of_turns() -> None:
    ones, others = [Seconds(2, 1), Seconds(6, 1), Seconds(5, 3)], [Seconds(1, 2), Seconds(2, 1), Seconds(5, 1)]
    assert Ratio.of(ones, others) == Ratio(seconds=5, ratio=2, least=1, most=3, processor=1)


def test_the_tables_have_what_was_found() -> None:
    ratio = vars(Ratio(0.5, 0.712, 0.69, 0.75, 0.7))
    row = {
        "network": "ConvNet",
        "N": 8,
        "strategy": "routed",
        "start": "switch",
        "evaluations": 18.0,
        "plain_evaluations": 35.0,
    }
    opening = {"seconds": 1.234, "MB_read": 20.04, "MB_held": 30.0}
    drawn = {"images": 512, "off": 0.0123, "p": 0.456}
    text = tables_of(
        {
            "many": 1000,
            "sampling": [row | {"to_plain": ratio, "to_same_switch": ratio, "proportions": drawn}],
            "opening": {"of_five": opening, "of_many": opening, "all_of_many": opening},
            "sampler_alone": ratio,
            "step_of_prompt": {"a head, U-ViT": ratio},
            "images_per_second": 9876.5,
            "MB_at_most": {"fit 1 owner": 1234.5},
            "uvit": {"apart": 1e-6, "forward bfloat16": ratio},
            "diffusers": None,
            "fitting": {
                "images": 6000,
                "seconds_of_one_source": 4.25,
                "of_processor": 3.25,
                "four_in_one_fit": ratio,
                "same_bytes": True,
            },
        }
    )
    found = "0.71 (0.69 to 0.75), 0.70"
    assert f"| ConvNet | 8 | routed | switch | 18 / 35 | {found} | {found} |" in text
    assert "| the same 5 of 1000 | 1.23 s, 20.0 MB read, 30 MB held |" in text
    assert "| a source of 6000 images, `none` | 4.2 s, 3.2 s of the processor |" in text
    assert f"| our U-ViT to the public code, forward bfloat16 | {found} |" in text
    assert "| sources of 512 images, `routed` from the switch | off by 0.012 at most, p 0.46 |" in text
    assert "| fit 1 owner | 1234 |" in text
