"""What a private prompt adds to a source, on a guided and on a plain backbone: held-out errors with it and without.

    python -m benchmarks.private_prompts --work out/quality --source sandal

WORK is that of `benchmarks.quality`, with its backbones and shards. Tokens are trained at several epsilon, of which
they take several shares, and without privacy, for as many steps on as many images. Beside that, the closed form alone.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.backbones import copy_backbone
from benchmarks.quality import QUIET, Step, one
from benchmarks.quality_stores import BACKBONES, CONFIG
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data

SIGMAS = (1.0, 0.5, 0.3, 0.1)
EPSILONS = (1.0, 10.0, None)  # None: without privacy
SHARES = {
    "guided": (0.5, 0.2, 0.05, 0.01, None),
    "unet": (0.5,),
}  # of the budget that tokens take; None: there are none
TOKENS = ("--model.compartment", "tokens", "--trainer.max_steps", "100", "--data.batch_size", "256")
HELD_OUT = 200


def measured(options: argparse.Namespace, backbone: str, epsilon: float | None, share: float | None) -> dict[str, Any]:
    """Fit the source, and return its held-out errors by row and what its card says of the training."""
    work, name = Path(options.work), f"private-{backbone}-{epsilon or 'plain'}-{share or 'none'}"
    place, root = work / "stores" / name, work / "shards" / "classes"
    copy_backbone(work / "stores" / f"backbone-{backbone}", place)
    chosen = list(TOKENS if share else ())
    if epsilon is not None:
        chosen += ["--privacy.epsilon", str(epsilon)]
        chosen += ["--privacy.draws", "1", "--privacy.prompt_share", str(share)] if share else []
    where = ["--store", str(place), "--data.root", str(root), "--data.sources", f"[{options.source}]"]
    one(name, Step(["fit", "--config", CONFIG, *where, *BACKBONES[backbone], *chosen, *QUIET]), work / "logs")
    store = Store.open(place)
    opened = open_compartments(store, [options.source], sigma_switch=None, device="cpu")
    bare = opened.with_sources({options.source: replace(opened.compartments[options.source], prompt=None)})
    x_0 = from_uint8(shard_data(store, root, None).images(options.source, "heldout")[1][:HELD_OUT])
    with torch.inference_mode():
        errors = {
            row: heldout_error(one_of[options.source], x_0, SIGMAS)
            for row, one_of in (("with", opened), ("without", bare))
        }
    card = store.read_card(options.source).settings
    return {"backbone": backbone, "epsilon": epsilon, "share": share, "mse": errors, "card": card}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the errors, with the prompt and without, by backbone, epsilon and share."""
    names = [f"{row} prompt: {sigma:g}" for row in ("without", "with") for sigma in SIGMAS]
    table = [["backbone", "epsilon", "share of the prompt", *names]]
    for row in rows:
        errors = [f"{error:.4f}" for name in ("without", "with") for error in row["mse"][name]]
        epsilon = "no privacy" if row["epsilon"] is None else f"{row['epsilon']:g}"
        table.append([row["backbone"], epsilon, "no prompt" if row["share"] is None else f"{row['share']:g}", *errors])
    return markdown(table)


def main() -> None:
    """Write benchmarks/results/private_prompts.json, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="out/quality", help="folder of benchmarks.quality")
    parser.add_argument("--source", default="sandal")
    options = parser.parse_args()
    rows = [
        measured(options, backbone, epsilon, share)
        for backbone, shares in SHARES.items()
        for epsilon in EPSILONS
        for share in (shares if epsilon is not None else shares[:1])
    ]
    result = {"rows": rows, "sigma": SIGMAS, "source": options.source, "heldout": HELD_OUT, "versions": versions()}
    (RESULTS / "private_prompts.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
