"""What a store is worth: held-out denoising error by source and sigma, seconds per phase, bytes, a contact sheet.

python -m benchmarks.store_report --store stores/fashion --root data/fashion --name fashion
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.versions import versions
from callbacks.figures import image_rows
from cdm_lightning.evaluation import SIGMAS, heldout_errors
from cdm_lightning.generation import Settings, sample_batch
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from datamodules import ShardDataModule

RESULTS = Path(__file__).parent / "results"
HELDOUT = 300
ROW = 12


def heldout_images(store: Store, root: str, sources: list[str]) -> dict[str, Tensor]:
    """Return at most HELDOUT held-out images of each source."""
    channels, size, _ = store.info.image_shape
    data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
    return {source: from_uint8(data.images(source, "heldout")[1][:HELDOUT]) for source in sources}


def phase_seconds(store: Store) -> dict[str, Any]:
    """Return what each phase's run folder says of its time."""
    files = sorted(store.runs.rglob("seconds.json"))
    return {str(path.parent.relative_to(store.runs)): json.loads(path.read_text()) for path in files}


def contact_sheet(store: Store, seed: int) -> Figure:
    """Draw samples of every source and of the composed model, from the same noise in each column."""
    compartments = open_compartments(store, "all", sigma_switch=None, device="cpu")
    shape, settings, rows = store.info.image_shape, Settings(seed=seed), {}
    composed = compartments.composed("routed")
    rows["composed"] = sample_batch(composed, shape, range(ROW), settings).images
    for source in compartments:
        rows[source] = sample_batch(composed.alone(source), shape, range(ROW), settings).images
    return image_rows(
        rows, f"routed, Heun {settings.steps} steps, seed {seed}, the same noise in each column", list(compartments)
    )


def report(store: Store, root: str, seed: int) -> dict[str, Any]:
    """Return everything that the JSON holds."""
    compartments = open_compartments(store, "all", sigma_switch=float("inf"), device="cpu")
    metadata = store.read_backbone()[1]
    folders = {source: store.folder(source) / "compartment.safetensors" for source in store.sources()}
    return {
        "heldout_mse": {
            "n_per_source": HELDOUT,
            "sigma": SIGMAS,
            "by_source": heldout_errors(compartments, heldout_images(store, root, store.sources()), SIGMAS, seed),
        },
        "seconds": phase_seconds(store),
        "bytes": {
            "backbone": (store.path / "backbone.safetensors").stat().st_size,
            "compartments": {source: path.stat().st_size for source, path in folders.items()},
        },
        "parameters": sum(p.numel() for p in compartments.backbone.parameters()),
        "backbone": metadata,
        "n": {source: compartment.n for source, compartment in compartments.compartments.items()},
        "seed": seed,
        "versions": versions(),
    }


def summary(result: dict[str, Any]) -> str:
    """Return the errors averaged over sources as a Markdown table."""
    errors = result["heldout_mse"]["by_source"]
    lines = ["| sigma | closed form | network | sources where the network is not better |", "|---|---|---|---|"]
    for i, sigma in enumerate(result["heldout_mse"]["sigma"]):
        closed, network = ([rows[kind][i] for rows in errors.values()] for kind in ("closed_form", "network"))
        worse = [source for source, c, d in zip(errors, closed, network, strict=True) if d >= c]
        means = sum(closed) / len(closed), sum(network) / len(network)
        lines.append(f"| {sigma:g} | {means[0]:.5f} | {means[1]:.5f} | {', '.join(worse) or 'none'} |")
    return "\n".join(lines)


def main() -> None:
    """Write NAME.json and NAME_samples.png into benchmarks/results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = Store.open(Path(options.store))
    RESULTS.mkdir(exist_ok=True)
    result = report(store, options.root, options.seed)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    contact_sheet(store, options.seed).savefig(RESULTS / f"{options.name}_samples.png")
    print(summary(result))


if __name__ == "__main__":
    main()
