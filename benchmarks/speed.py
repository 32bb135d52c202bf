"""What composing costs, as ratios measured side by side: against one plain model, one source, runs alone.

    python -m benchmarks.speed --work out/speed [--many 1000]

One thread. Shapes are those of the quality benchmark (28x28, 1.2M parameters); images and owners are made up, since
only shapes and numbers matter here. Ends with a table, and WORK/speed.json.
"""

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed_rows import (
    PAIRS,
    evaluations,
    images_per_second,
    in_turns,
    opened,
    opening,
    sampler_alone,
    sampling,
    seconds_of,
    training_step,
)
from benchmarks.speed_stores import IMAGES, OF_OWNER, OF_PUBLIC, OWNERS, PLAIN, SIZE, fit, write_many, write_shards
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.generation import Settings, Start
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.tensor_files import write_report
from cdm_lightning.text_tables import markdown

ONE = "everybody"  # the source of a large number of images
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", 20, "--refit")


def prepare(work: Path) -> None:
    """Write shards, a guided store of eight owners and one of everybody, and a plain one."""
    grey = {"public": OF_PUBLIC, ONE: IMAGES} | dict.fromkeys(OWNERS, OF_OWNER)
    root = write_shards(work, "grey", grey, SIZE, 1)
    write_shards(work, "colour", {"public": 64, "one": 4096}, 32, 3)
    fit(work / "guided", root, OWNERS)
    fit(work / "plain", root, [ONE], *PLAIN)


def costs_of_sampling(work: Path) -> list[dict[str, Any]]:
    """Return a row for every way to sample: its ratio to one plain model, and to one with the same switch."""
    plain, one = opened(work / "plain", [ONE]), opened(work / "guided", [ONE])
    every, thousand = opened(work / "guided", OWNERS), opened(work / "many", "all")
    ways: list[tuple[Compartments, Strategy, Start]] = [
        (every, "routed", "noise"),
        (every, "draft", "noise"),
        (every, "assign", "noise"),
        (every, "routed", "switch"),
        (every, "draft", "switch"),
        (thousand, "routed", "switch"),
        (thousand, "assign", "noise"),
    ]
    alone = Settings()
    rows = []
    for model, strategy, start in ways:
        settings = Settings(strategy=strategy, start=start)
        to_plain = in_turns(sampling(model, settings), sampling(plain, alone))
        same = Settings(start=start)
        to_one = in_turns(sampling(model, settings), sampling(one, same))
        named = {"N": len(model), "strategy": strategy, "start": start}
        counted = {"evaluations": evaluations(model, settings), "plain_evaluations": evaluations(plain, alone)}
        rows.append(named | counted | {"to_plain": asdict(to_plain), "to_same_switch": asdict(to_one)})
    return rows


def costs_of_fitting(work: Path) -> dict[str, Any]:
    """Fit a large source into the guided store, and four owners in one fit and in four; return what that took."""
    root, place = work / "shards-grey", work / "fitted"
    seconds = seconds_of(lambda: fit(work / "guided", root, [ONE], "--model.clusters", 80))
    four = OWNERS[:4]
    for name in ("together", "alone"):
        (place / name).mkdir(parents=True)
        for file in ("store.json", "backbone.safetensors"):
            shutil.copy(work / "guided" / file, place / name / file)

    def alone() -> None:
        for owner in four:
            fit(place / "alone", root, [owner], *TOKENS)

    ratio = in_turns(lambda: fit(place / "together", root, four, *TOKENS), alone, pairs=3)
    hashes = [Store.open(place / name).compartments_sha256() for name in ("together", "alone")]
    same = hashes[0] == hashes[1]
    return {"images": IMAGES, "seconds_of_one_source": seconds, "four_in_one_fit": asdict(ratio), "same_bytes": same}


def table_of(found: dict[str, Any]) -> str:
    """Return what was found as Markdown tables."""

    def ratio(one: dict[str, float]) -> str:
        return f"{one['ratio']:.2f} ({one['least']:.2f} to {one['most']:.2f})"

    head = ["N", "strategy", "start", "evaluations", "to one plain model", "to one of the same switch"]
    rows = [
        [
            str(row["N"]),
            row["strategy"],
            row["start"],
            f"{row['evaluations']:g} / {row['plain_evaluations']:g}",
            ratio(row["to_plain"]),
            ratio(row["to_same_switch"]),
        ]
        for row in found["sampling"]
    ]
    few, all_of, fitting = found["opening"]["of_five"], found["opening"]["of_many"], found["fitting"]
    others = [
        ["what", "found"],
        ["sampler alone, to `routed` of 8", ratio(found["sampler_alone"])],
        ["a step of tokens, to one of the whole network", ratio(found["step_of_tokens"])],
        ["four owners in one fit, to four fits", ratio(fitting["four_in_one_fit"])],
        ["their bytes are the same", str(fitting["same_bytes"])],
        [f"a source of {fitting['images']} images, `none`", f"{fitting['seconds_of_one_source']:.1f} s"],
        ["PNG of 32x32 in colour, tar to batch", f"{found['images_per_second']:.0f} images/s"],
        ["opening 5 owners of a store of 5", f"{few['seconds']:.2f} s, {few['MB_read']:.1f} MB read"],
        [f"the same 5 of {found['many']}", f"{all_of['seconds']:.2f} s, {all_of['MB_read']:.1f} MB read"],
    ]
    return "\n\n".join(markdown(lines) for lines in ([head, *rows], others))


def main() -> None:
    """Time everything, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="out/speed", help="folder of shards and stores; made anew")
    parser.add_argument("--many", type=int, default=1000, help="owners of the large store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, started = Path(options.work), time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)
    prepare(work)
    five = [f"owner{k}" for k in range(5)]
    write_many(work / "five", Store.open(work / "guided"), 5)
    write_many(work / "many", Store.open(work / "guided"), options.many)
    every = opened(work / "guided", OWNERS)
    tokens, whole = (training_step(work / "plain", 8, whole=whole) for whole in (False, True))
    found: dict[str, Any] = {
        "many": options.many,
        "fitting": costs_of_fitting(work),
        "sampling": costs_of_sampling(work),
        "opening": {"of_five": opening(work / "five", five), "of_many": opening(work / "many", five)},
        "sampler_alone": asdict(in_turns(sampler_alone(every, Settings()), sampling(every, Settings()))),
        "step_of_tokens": asdict(in_turns(tokens, whole)),
        "images_per_second": images_per_second(work / "shards-colour", "one", 32, 3),
        "pairs": PAIRS,
        "versions": versions(),
    }
    found["seconds"] = round(time.perf_counter() - started, 1)
    write_report(work / "speed.json", found)
    print(table_of(found))


if __name__ == "__main__":
    main()
