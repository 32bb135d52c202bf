"""How an owner could try to be credited for more than it gave, and what that brings.

    python -m benchmarks.inflation --store stores/digits --root data/digits

One source's images are changed as a cheat would, its closed form is fitted anew, and held-out images of all sources are
credited. A cell is the mean credit of that source, for `loo` and `shapley` the share of what is positive: on its own
held-out images, on those of a source that is imitated, and on those of all others. Exact copies are no row: shards
count an image once.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.credit_methods import CreditSettings, credit
from cdm_lightning.gaussians import MOST_CLUSTERS
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.source_forms import fit_untrained
from cdm_lightning.store import Store
from cdm_lightning.validate_command import shard_data

TIMES = 9
METHODS = (CreditSettings("gaussians"), CreditSettings("weights"), CreditSettings("loo"), CreditSettings("shapley"))


def nearly(images: Tensor, times: int) -> Tensor:
    """Return copies of uint8 images [n, ...], each with one pixel that is another by one grey level, no two alike."""
    flat = images.flatten(1).repeat(times, 1)
    copy = torch.arange(times).repeat_interleave(len(images))
    row = torch.arange(len(flat))
    flat[row, copy] = torch.where(flat[row, copy] < 255, flat[row, copy] + 1, 254)
    return flat.reshape(-1, *images.shape[1:])


def cheats(own: Tensor, victim: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return what makes the training images of a source, uint8, by what its owner does."""
    noise = torch.randint(256, own.shape, generator=generator(0, "inflation"), dtype=torch.uint8)
    black = torch.zeros_like(own[:1])
    return {
        "honest": lambda: own,
        "near-copies of its own": lambda: torch.cat([own, nearly(own, TIMES)]),
        "as many images of noise": lambda: torch.cat([own, noise]),
        "near-copies of one black image": lambda: torch.cat([own, nearly(black, own[0].numel())]),
        "near-copies of another's images": lambda: torch.cat([own, nearly(victim, 1)]),
    }


def with_other(opened: Compartments, source: str, images: Tensor) -> Compartments:
    """Return the compartments with one that was fitted to other images, uint8."""
    other = fit_untrained(from_uint8(images), opened.public, MOST_CLUSTERS, 0, source)
    return opened.with_sources(opened.compartments | {source: other})


def main() -> None:
    """Measure every cheat with every method and write inflation.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--cheat", default="digit3")
    parser.add_argument("--victim", default="digit8")
    options = parser.parse_args()
    store = Store.open(Path(options.store))
    data = shard_data(store, Path(options.root), None)
    opened = open_compartments(store, "all", sigma_switch=None, device="cpu")
    held_out = {name: from_uint8(data.images(name, "heldout")[1]) for name in opened}
    true = torch.cat([torch.full((len(x),), k) for k, x in enumerate(held_out.values())])
    place, victim = (list(opened).index(name) for name in (options.cheat, options.victim))
    own, stolen = (data.images(name, "train")[1] for name in (options.cheat, options.victim))
    rows: dict[str, object] = {}
    for name, make in cheats(own, stolen).items():
        images = make()
        model, by_method = with_other(opened, options.cheat, images), {}
        for settings in METHODS:
            with torch.inference_mode():
                found = credit(model, torch.cat(list(held_out.values())), replace(settings, seed=0))
            share = found.positive[place].nan_to_num()
            others = (true != place) & (true != victim)
            groups = {"own": true == place, "victim": true == victim, "others": others}
            cells = {group: float(share[mine].mean()) for group, mine in groups.items()}
            by_method[settings.method] = cells | {"all": float(share.mean())}
        rows[name] = {"n": len(images), "prior": model.prior()[options.cheat], "credits": by_method}
        print(name, len(images), {m: {g: round(v, 4) for g, v in c.items()} for m, c in by_method.items()}, flush=True)
    settings_ = {"cheat": options.cheat, "victim": options.victim, "seed": 0, "heldout_images": len(true)}
    report = {"rows": rows, "backbone_sha256": store.info.backbone_sha256, "versions": versions()} | settings_
    (RESULTS / "inflation.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
