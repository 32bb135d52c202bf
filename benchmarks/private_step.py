"""What a private training step costs against a plain one, per image that goes through the network, in turns.

    python -m benchmarks.private_step --name private_step

A U-ViT with random weights on random images, 8 tokens; both steps are guided by the
same closed form. A plain step has `rows` images, a private one rows / draws images of `draws` noises each. Seconds are
those of the processor, from the images to the gradient; the optimizer's part is the same for both.
"""

import argparse
import json
import statistics
import time
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.backbone import UViT
from cdm_lightning.compartment import Compartment
from cdm_lightning.drafts import DraftError, ReleasedDraft
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.images import from_uint8
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.phase import Phase
from cdm_lightning.private_gradient import PrivateSteps
from cdm_lightning.public import Public
from cdm_lightning.seeding import generator

SIDE = 28


def module_of(images: Tensor, steps: PrivateSteps | None) -> CompartmentalizedDiffusion:
    """Return a module that trains a prompt, private or plain, guided by the closed form of some images."""
    form = Gaussians.fit(from_uint8(images), seed=0, rank=64, clusters=1)
    error = DraftError(torch.tensor([500.0]), torch.tensor([0.01, 10.0]), torch.tensor([[0.05, 0.4]]))
    public = Public(form, Strength(1.0, 1.0), error, Calibration(torch.ones(1), torch.ones(1), 0.1), 3.0, 64)
    backbone = UViT(SIDE, 1, guided=True, patch_size=4, width=128, depth=5, heads=4)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator("weights", parameter.numel()))
    module = CompartmentalizedDiffusion(backbone, compartment="tokens")
    untrained = Compartment(len(images), form, form)
    module.begin_source(Phase("source", "a", 1, 1), public, ReleasedDraft(form, len(images)), untrained, steps)
    module._trainer = SimpleNamespace(global_step=0, global_rank=0)  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def seconds(module: CompartmentalizedDiffusion, images: Tensor) -> float:
    """Return the processor's seconds of a step."""
    batch = {"image": images, "label": [""] * len(images), "key": [""] * len(images)}
    start = time.process_time()
    module.training_step(batch, 0)["loss"].backward()
    return time.process_time() - start


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--rows", type=int, default=64, help="images in a pass of the network")
    parser.add_argument("--draws", type=int, default=4, help="noises of each image in a private step")
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    shape = (500, 1, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=generator("images"), dtype=torch.uint8)
    few = options.rows // options.draws
    steps = PrivateSteps(
        count=1,
        rate=0.1,
        expected=float(few),
        multiplier=1.0,
        clipping_norm=0.1,
        draws=options.draws,
        together=few,
        secret=b"0" * 32,
        named={},
        epsilon=float,
    )
    plain, private = module_of(images, None), module_of(images, steps)
    turns = []
    for _ in range(1 + options.turns):
        turns.append((seconds(plain, images[: options.rows]), seconds(private, images[:few])))
    ratios = sorted(private / plain for plain, private in turns[1:])
    found = {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    result = {**found, "turns": turns[1:], **vars(options), "threads": torch.get_num_threads(), "versions": versions()}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print({name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
