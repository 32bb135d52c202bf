"""The most memory that fit, sample and forget hold: a process each, on the network of cifar_shards.yaml."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.speed_stores import QUIET, command, write_shards
from cdm_lightning.cost import peak_of_process

OWNERS = [f"owner{k}" for k in range(4)]
CIFAR = ("--config", "cifar_shards.yaml", "--data.split", "folder", "--data.heldout_fraction", 0)
SHORT = ("--data.public_fraction", 0, "--model.backbone_steps", 1)


def peaks(work: Path) -> dict[str, float]:
    """Return MB by what was done: with one owner and four, of one shard each and eight."""
    sizes = {"public": 600} | dict.fromkeys(OWNERS, 500)
    few, many = (write_shards(work, f"cifar-{n}", sizes, 32, 3, n) for n in (1, 8))
    store = work / "cifar"
    fitting = ("fit", *CIFAR, *SHORT, *QUIET, "--store")

    def fit(root: Path, sources: list[str], shards: int) -> tuple[object, ...]:
        origin = ("--data.root", root, "--data.shards_per_source", shards)
        return (*fitting, store, *origin, "--data.sources", f"[{', '.join(sources)}]", "--refit")

    def sample(sources: list[str]) -> tuple[object, ...]:
        return ("sample", "--store", store, "--sources", f"[{', '.join(sources)}]", "--out", work / "sampled")

    found = {
        "fit the backbone": peak(*fit(few, [], 1)),
        "fit 1 owner": peak(*fit(few, OWNERS[:1], 1)),
        "fit 4 owners": peak(*fit(few, OWNERS, 1)),
        "sample of 1 owner": peak(*sample(OWNERS[:1])),
        "sample of 4 owners": peak(*sample(OWNERS)),
        "forget 1 of 4 owners": peak("forget", "--store", store, "--source", OWNERS[3]),
    }
    shutil.rmtree(store)
    peak(*fit(many, [], 8))
    return found | {"fit 1 owner of 8 shards": peak(*fit(many, OWNERS[:1], 8))}


def peak(*words: object) -> float:
    """Return the MB that a process holds at most which runs one command, Python and PyTorch counted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, words).result()


def _peak(words: tuple[object, ...]) -> float:
    torch.set_num_threads(1)
    command(*words)
    return (peak_of_process() or 0) / 1e6
