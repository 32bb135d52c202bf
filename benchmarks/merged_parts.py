"""Eight parts against one model of all: held-out errors of their drafts, and of what finishes them, under classes.

    python -m benchmarks.merged_parts --parts out/quality/stores/parts-full --mono out/quality/stores/parts-mono-full \
        --root out/quality/shards/classes

Closed forms of one part, merged of all parts, and of the monolith; the draft of one part finished without a prompt, by
its own copy, by the average of the copies and by the monolith's copy; the monolith; and the merged draft finished by
the average, also where it goes further than that from the backbone, as task vectors are added (Ilharco et al. 2023).
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.evaluation import heldout_error
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.prompts import Prompt
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from cdm_lightning.validate_command import shard_data

SIGMAS = (3.0, 1.0, 0.5, 0.3, 0.1, 0.05)
FURTHER = (1.0, 1.5, 2.0)
PART = "part0"
Denoisers = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


def further(backbone: torch.nn.Module, average: Prompt, scale: float) -> Prompt:
    """Return a full copy that is `scale` times as far from the backbone as the average of the copies is."""
    moved, start = copy.deepcopy(average), {f"copy.{name}": tensor for name, tensor in backbone.state_dict().items()}
    moved.load_state_dict(
        {
            name: torch.lerp(start.get(name, torch.zeros_like(tensor)), tensor, scale)
            for name, tensor in moved.state_dict().items()
        }
    )
    return moved


def finished(parts: Compartments, prompt: Prompt | None, label: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the draft of one part, finished with a prompt."""
    one = replace(parts.compartments[PART], prompt=prompt, label=label)
    return parts.with_sources({PART: one})[PART]


def averaged(parts: Compartments, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the merged draft, finished by the average of the copies, or by what lies further."""
    own = parts.with_sources(parts.compartments)
    assert own.average is not None
    own.average = further(own.backbone, own.average, scale)
    return own.finish


def denoisers(parts: Compartments, mono: Compartments) -> Denoisers:
    """Return all that is measured, under one class."""
    own, (whole,) = parts.compartments[PART], mono.compartments.values()
    return {
        "closed form of one part": parts.closed_forms[PART].denoise,
        "closed form, merged": parts.union.denoise,
        "closed form of the monolith": next(iter(mono.closed_forms.values())).denoise,
        "one part's draft, no prompt": finished(parts, None, own.label),
        "one part's draft, its own copy": finished(parts, own.prompt, own.label),
        "one part's draft, the average": finished(parts, parts.average, own.label),
        "one part's draft, the monolith's copy": finished(parts, whole.prompt, whole.label),
        "the monolith's draft, its copy": next(iter(mono.values())),
        **{f"merged draft, {scale:g} times the average": averaged(parts, scale) for scale in FURTHER},
    }


def measured(parts: Compartments, mono: Compartments, held_out: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return the errors by noise level, averaged over the classes."""
    found: dict[str, list[float]] = {}
    for label, images in held_out.items():
        for name, denoiser in denoisers(parts.under(label), mono.under(label)).items():
            errors = heldout_error(denoiser, images, SIGMAS)
            found[name] = [
                a + b / len(held_out) for a, b in zip(found.get(name, [0.0] * len(SIGMAS)), errors, strict=True)
            ]
    return found


def main() -> None:
    """Write benchmarks/results/merged_parts.json, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("parts", "mono"):
        parser.add_argument(f"--{name}", required=True, help="a store with class labels and full copies")
    parser.add_argument("--root", required=True, help="shards whose sources are the classes")
    parser.add_argument("--images", type=int, default=40, help="held-out images of each class")
    options = parser.parse_args()
    stores = {name: Store.open(Path(getattr(options, name))) for name in ("parts", "mono")}
    data = shard_data(stores["parts"], Path(options.root), None)
    held_out = {name: from_uint8(data.images(name, "heldout")[1][: options.images]) for name in data.chosen_sources()}
    with torch.inference_mode():
        parts, mono = (open_compartments(one, "all", sigma_switch=None, device="cpu") for one in stores.values())
        found = measured(parts, mono, held_out)
    result = {"mse": found, "sigma": SIGMAS, "heldout_per_class": options.images, "classes": list(held_out)}
    result |= {"stores": {name: str(store.path) for name, store in stores.items()}, "versions": versions()}
    (RESULTS / "merged_parts.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    rows = [[name, *(f"{error:.5f}" for error in errors)] for name, errors in found.items()]
    print(markdown([["", *(f"{sigma:g}" for sigma in SIGMAS)], *rows]))


if __name__ == "__main__":
    main()
