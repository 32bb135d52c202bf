"""Training of the joint classifier, on images of all sources at once; see `joint_classifier`."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN, per_image
from cdm_lightning.errors import StoreError
from cdm_lightning.evidence import Features, NoisedFeatures, Whitening
from cdm_lightning.evidence.ratio import STEPS
from cdm_lightning.images import from_uint8
from cdm_lightning.joint_classifier import NAMES, JointHead, bare_features, device_of
from cdm_lightning.seeding import generator
from cdm_lightning.tensor_files import Json, read_tensors, write_tensors

KNOTS = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), 15)
KEPT, RIDGE = 256, 1e-3
IMAGES = 1000  # of each source, at most
PASSES = 4  # noised versions of each image, at least
DRAWS = 100  # noised images of each source, at least
BATCH = 128
SETTINGS: Mapping[str, Json] = {
    "sigma_range": [SIGMA_MIN, SIGMA_MAX],
    "knots": len(KNOTS),
    "kept": KEPT,
    "ridge": RIDGE,
    "images": IMAGES,
    "passes": PASSES,
    "draws": DRAWS,
    "steps": STEPS,
}


def keep_classifier(
    path: Path,
    compartments: Compartments,
    images: Callable[[], Mapping[str, Tensor]],
    seed: int,
    depends_on: Mapping[str, Json],
) -> None:
    """Train the classifier of the sources and keep it in a file; nothing is done where the file still holds.

    Args:
        path: of the file.
        compartments: of the sources.
        images: returns training images, uint8 [n, channel, height, width], by source.
        seed: draws images and noise.
        depends_on: what identifies backbone, images and the machine's arithmetic.
    """
    identity: dict[str, Json] = {**SETTINGS, **depends_on, "seed": seed, "sources": list(compartments)}
    try:
        if read_tensors(path)[1] == identity:
            return
    except StoreError:
        pass  # there is none yet, or it is damaged: it is trained again
    found, device = images(), device_of(compartments)
    ordered = [found[source] for source in compartments]
    whitening, head = trained(bare_features(compartments), ordered, seed, device)
    parts = (head.knots, head.weight, head.bias, whitening.mean, whitening.deviation, whitening.basis)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, dict(zip(NAMES, parts, strict=True)), identity)


def trained(bare: Features, images: Sequence[Tensor], seed: int, device: torch.device) -> tuple[Whitening, JointHead]:
    """Train on at most IMAGES images of each source, uint8 [n, channel, height, width], through `bare` features."""
    by_source = [noised(bare, some, seed, source, device) for source, some in enumerate(images)]
    joint = joined(by_source)
    knots = KNOTS.to(joint.value)
    whitening = Whitening.fit(joint, knots, KEPT)
    return whitening, JointHead.fit([whitening(own) for own in by_source], knots, RIDGE)


@torch.no_grad()
def noised(bare: Features, images: Tensor, seed: int, source: int, device: torch.device) -> NoisedFeatures:
    """Return features of noised images of a source, at levels even in log sigma over all that a sampler uses."""
    draws = generator(seed, "classifier", source)
    x_0 = from_uint8(images[torch.randperm(len(images), generator=draws)[:IMAGES]])
    x_0 = x_0.repeat(max(PASSES, math.ceil(DRAWS / len(x_0))), 1, 1, 1)
    share = (torch.randperm(len(x_0), generator=draws) + torch.rand(len(x_0), generator=draws)) / len(x_0)
    sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** share
    parts = []
    for clean, level in zip(x_0.split(BATCH), sigma.split(BATCH), strict=True):
        x = clean + per_image(level, clean) * torch.randn(clean.shape, generator=draws)
        parts.append(bare(x.to(device), level.to(device)))
    return joined(parts)


def joined(parts: Sequence[NoisedFeatures]) -> NoisedFeatures:
    """Return the features of all parts, one after the other."""
    return NoisedFeatures(torch.cat([part.value for part in parts]), torch.cat([part.sigma for part in parts]))
