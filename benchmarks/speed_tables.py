"""What `benchmarks.speed` found, as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from cdm_lightning.text_tables import markdown


def tables_of(found: Mapping[str, Any]) -> str:
    """Return the tables of sampling, of all other ratios, and of memory."""
    return "\n\n".join(markdown(rows) for rows in (_sampling(found), _others(found), _memory(found)))


def _ratio(one: Mapping[str, float]) -> str:
    return f"{one['ratio']:.2f} ({one['least']:.2f} to {one['most']:.2f}), {one['processor']:.2f}"


def _sampling(found: Mapping[str, Any]) -> list[list[str]]:
    head = ["network", "N", "strategy", "start", "evaluations", "to one plain model", "to one of the same switch"]
    return [head] + [
        [
            row["network"],
            str(row["N"]),
            row["strategy"],
            row["start"],
            f"{row['evaluations']:g} / {row['plain_evaluations']:g}",
            _ratio(row["to_plain"]),
            _ratio(row["to_same_switch"]),
        ]
        for row in found["sampling"]
    ]


def _others(found: Mapping[str, Any]) -> list[list[str]]:
    fitting, many = found["fitting"], found["many"]
    rows = [
        ["what", "found"],
        ["sampler alone, to `routed` of 8", _ratio(found["sampler_alone"])],
        *(
            [f"a training step of {prompt}, to one of the whole network", _ratio(one)]
            for prompt, one in found["step_of_prompt"].items()
        ),
        ["four owners in one fit, to four fits", _ratio(fitting["four_in_one_fit"])],
        ["their bytes are the same", str(fitting["same_bytes"])],
        [
            f"a source of {fitting['images']} images, `none`",
            f"{fitting['seconds_of_one_source']:.1f} s, {fitting['of_processor']:.1f} s of the processor",
        ],
        ["PNG of 32x32 in colour, tar to batch", f"{found['images_per_second']:.0f} images/s"],
        ["opening 5 owners of a store of 5", _opening(found["opening"]["of_five"])],
        [f"the same 5 of {many}", _opening(found["opening"]["of_many"])],
        [f"all {many}", _opening(found["opening"]["all_of_many"])],
    ]
    for name, other in (("the public code", "uvit"), ("diffusers' transformer", "diffusers")):
        named = {what: one for what, one in (found[other] or {}).items() if isinstance(one, Mapping)}
        rows += [[f"our U-ViT to {name}, {what}", _ratio(ratio)] for what, ratio in named.items()]
    drawn = [row for row in found["sampling"] if row["proportions"] is not None]
    return rows + [
        [
            f"sources of {row['proportions']['images']} images, `{row['strategy']}` from the {row['start']}",
            f"off by {row['proportions']['off']:.3f} at most, p {row['proportions']['p']:.2f}",
        ]
        for row in drawn
    ]


def _opening(one: Mapping[str, float]) -> str:
    return f"{one['seconds']:.2f} s, {one['MB_read']:.1f} MB read, {one['MB_held']:.0f} MB held"


def _memory(found: Mapping[str, Any]) -> list[list[str]]:
    return [["most memory of a process", "MB"], *([what, f"{most:.0f}"] for what, most in found["MB_at_most"].items())]
