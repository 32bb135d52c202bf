"""What composing costs, as ratios measured side by side: against one plain model, one source, runs alone.

    python -m benchmarks.speed --work out/speed [--many 1000] [--pairs 5] [--uvit CHECKOUT] [--diffusers]

One thread. Networks are that of fashion_shards.yaml, of convolutions, and a U-ViT with patches of 4; images and owners
are made up, since only shapes and numbers matter here. The U-ViT is compared with that of `--uvit`, a checkout of
github.com/baofff/U-ViT, and with diffusers' transformer. Ends with tables, and WORK/speed.json.
"""

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed_memory import peaks
from benchmarks.speed_networks import against_diffusers, against_public
from benchmarks.speed_rows import (
    PAIRS,
    Ratio,
    back_to_the_input,
    by_turns,
    evaluations,
    images_per_second,
    in_turns,
    opened,
    opening,
    proportions,
    sampler_alone,
    sampling,
    seconds_of,
    training_step,
)
from benchmarks.speed_stores import (
    IMAGES,
    NETWORKS,
    OF_OWNER,
    OF_PUBLIC,
    OWNERS,
    PLAIN,
    SIZE,
    fit,
    write_many,
    write_shards,
)
from benchmarks.speed_tables import tables_of
from benchmarks.versions import versions
from cdm_lightning.allocator import keep_freed_memory
from cdm_lightning.compartments import Compartments
from cdm_lightning.generation import Settings, Start
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.tensor_files import write_report

DEFAULT = next(iter(NETWORKS))
ONE = "everybody"  # the source of a large number of images
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", 20, "--refit")
WAYS: tuple[tuple[Strategy, Start], ...] = (
    ("routed", "noise"),
    ("draft", "noise"),
    ("assign", "noise"),
    ("routed", "switch"),
    ("draft", "switch"),
)


def prepare(work: Path) -> None:
    """Write shards, and for each network a guided store of eight owners and one of everybody, and a plain one."""
    grey = {"public": OF_PUBLIC, ONE: IMAGES} | dict.fromkeys(OWNERS, OF_OWNER)
    root = write_shards(work, "grey", grey, SIZE, 1)
    write_shards(work, "colour", {"public": 64, "one": 4096}, 32, 3)
    for network, chosen in NETWORKS.items():
        fit(work / f"guided-{network}", root, OWNERS, *chosen)
        fit(work / f"plain-{network}", root, [ONE], *chosen, *PLAIN)


def costs_of_sampling(work: Path, network: str, pairs: int, many: int) -> list[dict[str, Any]]:
    """Return a row for every way to sample: its ratio to one plain model, and to one with the same switch and start."""
    plain, one = opened(work / f"plain-{network}", [ONE]), opened(work / f"guided-{network}", [ONE])
    every = opened(work / f"guided-{network}", OWNERS)
    models = {(len(every), *way): every for way in WAYS}
    if many:
        models[many, "routed", "switch"] = models[many, "assign", "noise"] = opened(work / "many", "all")
    settings = {way: Settings(strategy=way[1], start=way[2]) for way in models}
    actions = {way: sampling(model, settings[way]) for way, model in models.items()}
    alone: dict[tuple[int, str, str], tuple[Compartments, Settings]] = {
        (1, "plain", "noise"): (plain, Settings()),
        (1, "one", "noise"): (one, Settings()),
        (1, "one", "switch"): (one, Settings(start="switch")),
    }
    found = by_turns({**actions, **{name: sampling(*pair) for name, pair in alone.items()}}, pairs)
    rows = []
    for way, model in models.items():
        ratios = {
            "to_plain": asdict(Ratio.of(found[way], found[1, "plain", "noise"])),
            "to_same_switch": asdict(Ratio.of(found[way], found[1, "one", way[2]])),
        }
        counted = {
            "evaluations": evaluations(model, settings[way]),
            "plain_evaluations": evaluations(plain, Settings()),
        }
        named = {"network": network, "N": way[0], "strategy": way[1], "start": way[2]}
        draws = network == DEFAULT and len(model) == len(OWNERS) and way[1] != "draft"
        shares = proportions(model, settings[way]) if draws else None
        rows.append(named | counted | ratios | {"proportions": shares})
    return rows


def costs_of_fitting(work: Path) -> dict[str, Any]:
    """Fit a large source into the guided stores, and four owners in one fit and in four; return what that took."""
    root, place = work / "shards-grey", work / "fitted"
    large = ("--model.clusters", 80)
    took = seconds_of(lambda: fit(work / f"guided-{DEFAULT}", root, [ONE], *large, *NETWORKS[DEFAULT]))
    fit(work / "guided-U-ViT", root, [ONE], *large, *NETWORKS["U-ViT"])
    four = OWNERS[:4]
    for name in ("together", "alone"):
        (place / name).mkdir(parents=True)
        for file in ("store.json", "backbone.safetensors"):
            shutil.copy(work / f"guided-{DEFAULT}" / file, place / name / file)

    def alone() -> None:
        for owner in four:
            fit(place / "alone", root, [owner], *TOKENS)

    ratio = in_turns(lambda: fit(place / "together", root, four, *TOKENS), alone, pairs=3)
    hashes = [Store.open(place / name).compartments_sha256() for name in ("together", "alone")]
    same = hashes[0] == hashes[1]
    seconds = {"seconds_of_one_source": took.clock, "of_processor": took.processor}
    return {"images": IMAGES, **seconds, "four_in_one_fit": asdict(ratio), "same_bytes": same}


def steps_of_training(work: Path, pairs: int) -> dict[str, Any]:
    """Return the ratios of a step of tokens without a guide, and of a head with one, to one of the whole network."""
    found = {}
    for network in NETWORKS:
        tokens, plain = (training_step(work / f"plain-{network}", kind) for kind in ("tokens", "whole"))
        found[f"tokens, {network}"] = asdict(in_turns(tokens, plain, pairs))
    for blocks in (4, 3):
        few, plain = training_step(work / "plain-U-ViT", "tokens", blocks), training_step(work / "plain-U-ViT", "whole")
        found[f"tokens in the last {blocks} of 5 blocks, U-ViT"] = asdict(in_turns(few, plain, pairs))
    least, plain = back_to_the_input(work / "plain-U-ViT"), training_step(work / "plain-U-ViT", "whole")
    found["no tokens, forward and back to the input, U-ViT"] = asdict(in_turns(least, plain, pairs))
    head, guided = (training_step(work / "guided-U-ViT", kind) for kind in ("head", "whole"))
    found["a head, U-ViT"] = asdict(in_turns(head, guided, pairs))
    return found


def measured(work: Path, many: int, pairs: int, uvit: Path | None, diffusers: bool) -> dict[str, Any]:
    """Prepare and time everything; see `tables_of` for what it is."""
    prepare(work)
    five = [f"owner{k}" for k in range(5)]
    write_many(work / "five", Store.open(work / f"guided-{DEFAULT}"), 5)
    write_many(work / "many", Store.open(work / f"guided-{DEFAULT}"), many)
    fitting = costs_of_fitting(work)
    every = opened(work / f"guided-{DEFAULT}", OWNERS)
    return {
        "many": many,
        "fitting": fitting,
        "sampling": [
            row for network in NETWORKS for row in costs_of_sampling(work, network, pairs, many * (network == DEFAULT))
        ],
        "opening": {
            "of_five": opening(work / "five", five),
            "of_many": opening(work / "many", five),
            "all_of_many": opening(work / "many", "all"),
        },
        "sampler_alone": asdict(in_turns(sampler_alone(every, Settings()), sampling(every, Settings()), pairs)),
        "step_of_prompt": steps_of_training(work, pairs),
        "images_per_second": images_per_second(work / "shards-colour", "one", 32, 3),
        "MB_at_most": peaks(work),
        "uvit": None if uvit is None else against_public(uvit, pairs),
        "diffusers": against_diffusers(pairs) if diffusers else None,
        "pairs": pairs,
        "versions": versions(),
    }


def main() -> None:
    """Time everything, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="out/speed", help="folder of shards and stores; made anew")
    parser.add_argument("--many", type=int, default=1000, help="owners of the large store")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="turns that everything is timed in")
    parser.add_argument("--uvit", type=Path, default=None, help="a checkout of github.com/baofff/U-ViT")
    parser.add_argument("--diffusers", action="store_true", help="compare with diffusers, which has to be installed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    work, started = Path(options.work), time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)
    found = measured(work, options.many, options.pairs, options.uvit, options.diffusers)
    found["seconds"] = round(time.perf_counter() - started, 1)
    write_report(work / "speed.json", found)
    print(tables_of(found))


if __name__ == "__main__":
    main()
