"""The kinds of compartment side by side: held-out denoising error by sigma at equal training, guided and plain.

    python -m benchmarks.kinds --store stores/fashion --root data/fashion --config fashion_shards.yaml --name kinds \\
        --plain out/opponents/fashion_plain/public.safetensors --sources ankle-boot,sandal,trouser --steps 200

The guided backbone is the store's; the plain one, if there is one, is the network that `benchmarks.plain_opponent`
trained on `public` for as many steps; it has no head. Every kind is fitted by the command line into a store of its own
below `--work`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.backbones import copy_backbone, write_backbone_like
from benchmarks.plain import plain_network
from benchmarks.store_report import HELDOUT, RESULTS, heldout_images
from benchmarks.versions import versions
from cdm_lightning.cli import main as command
from cdm_lightning.evaluation import SIGMAS, heldout_error
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import read_tensors

KINDS = ("none", "tokens", "lora", "head", "full")
QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--metrics.extractor", "none")


def plain_store(store: Store, weights: Path, place: Path) -> None:
    """Make a store of the plain network, with what the guided one's `public` was fitted to."""
    tensors, metadata = store.read_backbone()
    network = plain_network(metadata)
    network.load_state_dict(read_tensors(weights)[0])
    public = unpack_backbone(tensors, metadata)[1]
    plain = {"guide": "none", "backbone": metadata["backbone"] | {"init_args": network.init_args}}
    write_backbone_like(store, place, network, public, plain)


def fitted(options: argparse.Namespace, guide: str, kind: str) -> Store:
    """Return the store of one guide and kind, fitted now or before."""
    store, place = Store.open(Path(options.store)), Path(options.work) / options.name / f"{guide}-{kind}"
    if not (place / "store.json").exists():
        copy_backbone(store.path, place) if guide == "closed_form" else plain_store(store, Path(options.plain), place)
    where = ["--config", options.config, "--data.root", options.root, "--store", str(place)]
    what = ["--model.guide", guide, "--model.compartment", kind, "--trainer.max_steps", str(options.steps)]
    code = command(["fit", *where, *what, "--data.sources", f"[{options.sources}]", *QUIET])
    if code:
        raise SystemExit(code)
    return Store.open(place)


def measured(options: argparse.Namespace, guide: str, kind: str) -> dict[str, Any]:
    """Return errors [level] by source, parameters and bytes of one guide and kind."""
    store, sources = fitted(options, guide, kind), options.sources.split(",")
    compartments = open_compartments(store, sources, sigma_switch=None, device="cpu")
    below = [sigma for sigma in SIGMAS if sigma < compartments.sigma_switch]
    images = heldout_images(store, options.root, sources)
    folders = [store.folder(source) for source in sources]
    return {
        "sigma": below,
        "heldout_mse": {source: heldout_error(compartments[source], images[source], below) for source in sources},
        "parameters": store.read_card(sources[0]).prompt_parameters,
        "bytes_per_source": sum(path.stat().st_size for folder in folders for path in folder.iterdir()) // len(sources),
    }


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Return the errors averaged over sources as a Markdown table."""
    sigmas = next(iter(rows.values()))["sigma"]
    lines = ["| guide, kind | parameters | MB per source | " + " | ".join(f"{sigma:g}" for sigma in sigmas) + " |"]
    lines.append("|---" * (len(sigmas) + 3) + "|")
    for name, row in rows.items():
        errors = list(row["heldout_mse"].values())
        means = [sum(column) / len(errors) for column in zip(*errors, strict=True)]
        cells = [f"{row['parameters']:,}", f"{row['bytes_per_source'] / 1e6:.1f}", *(f"{mean:.5f}" for mean in means)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Fit and measure every kind, write NAME.json into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "config", "name", "sources"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--plain", help="the network; by default the guided kinds alone are measured")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--work", default="out/kinds")
    options = parser.parse_args()
    pairs = [("closed_form", kind) for kind in KINDS]
    if options.plain:
        pairs += [("none", kind) for kind in KINDS if kind != "head"]
    rows = {f"{guide}, {kind}": measured(options, guide, kind) for guide, kind in pairs}
    result = {"rows": rows, "steps": options.steps, "n_per_source": HELDOUT, "seed": 0, "versions": versions()}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
