"""The training of a private source's prompt: DP-SGD on its images in memory, guided by what it has released before."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cdm_lightning.backbone import check_norms
from cdm_lightning.card import Card
from cdm_lightning.compartment import Compartment
from cdm_lightning.drafts import ReleasedDraft
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.images import to_uint8
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.phase import Clock, Phase
from cdm_lightning.privacy import Shares
from cdm_lightning.private_gradient import PrivateSteps, norms
from cdm_lightning.prompts import Tokens
from cdm_lightning.public import Public
from cdm_lightning.recipe import Recipe, SourceData
from cdm_lightning.releases import Spent
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from cdm_lightning.subsampled_gaussian import check_accountants, epsilon_after
from cdm_lightning.tensor_files import read_tensors, write_tensors
from cdm_lightning.training import train

BYTES_PER_NUMBER = 40  # of an image in memory while its source is released, copies included
RELEASED = "released.safetensors"
DRAWN = 64  # images by whose gradients the clipping norm is chosen
POINTS = 5  # of the training at which epsilon is computed


class PoissonBatches(IterableDataset[dict[str, Tensor]]):
    """The images of each step that is left, every image with the same probability, so their number varies.

    Args:
        images: uint8 [n, channel, height, width].
        steps: of the training.
        first: the first step.
    """

    def __init__(self, images: Tensor, steps: PrivateSteps, first: int) -> None:
        self.images, self.steps, self.first = images, steps, first

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield {image uint8 [batch, channel, height, width]}; a batch may be empty."""
        for step in range(self.first, self.steps.count):
            yield {"image": self.images[self.steps.chosen(len(self.images), step)]}

    def loader(self) -> DataLoader[Any]:
        """Return these batches as Lightning wants them; nobody draws from the generator."""
        return DataLoader(self, batch_size=None, generator=torch.Generator())


def check_prompt(recipe: Recipe, module: CompartmentalizedDiffusion, data: SourceData, said: str) -> None:
    """Check that a private prompt can be trained; `said` begins every sentence.

    Raises:
        BadInput: it cannot.
    """
    kind = module.hparams["compartment"]
    if kind != Tokens.kind:
        raise BadInput(
            f"{said}, and only tokens are trained with privacy so far: choose model.compartment tokens or none, not "
            f"{kind}"
        )
    if data.public_mix:
        raise BadInput(f"{said}, and its prompt is trained on its own images alone: leave data.public_mix 0")
    if int(recipe.training.get("ranks") or 1) > 1:
        raise BadInput(f"{said}, and its prompt is trained in one process: choose trainer.devices 1")
    check_norms(module.backbone)
    check_accountants()


def check_memory(source: str, images: int, numbers: int) -> None:
    """Raise BadInput if a source is too large for memory: a private one is drawn from at random, not streamed.

    Args:
        source: its name.
        images: how many it has.
        numbers: pixels times channels of an image.
    """
    needed, there = images * numbers * BYTES_PER_NUMBER, memory()
    if needed > there:
        raise BadInput(
            f"source '{source}' is private, so all of its images must be in memory at once: about {needed / 2**30:.3g} "
            f"GiB, and this machine has {there / 2**30:.3g}; split it into several sources, or use a larger machine"
        )


def memory() -> float:
    """Return the bytes of this machine's memory; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return math.inf


def steps_of(
    card: Card, shares: Shares, spent: Spent, secret: bytes, named: Mapping[str, str | int | float]
) -> PrivateSteps:
    """Return the steps that a card describes.

    Args:
        card: what the compartment's card will be.
        shares: what this fit may spend.
        spent: what the source has released, this fit included.
        secret: behind choice and noise.
        named: all that the steps depend on.
    """
    rate, multiplier, draws, clipping_norm, delta = (
        float(card.settings[name] or 0)
        for name in ("sampling_rate", "noise_multiplier", "draws", "clipped_at", "delta")
    )
    before = math.sqrt(sum(mu**2 for mu in spent.mus) - shares.prompt**2)
    apart = math.ceil(card.steps / POINTS)

    @cache
    def at(step: int) -> float:
        history = [(1 / before, 1.0, 1), (multiplier, rate, step)]
        return min(epsilon_after(history, delta - (spent.slack - shares.slack)), card.epsilon or math.inf)

    return PrivateSteps(
        count=card.steps,
        rate=rate,
        expected=rate * card.n,
        multiplier=multiplier,
        clipping_norm=clipping_norm,
        draws=int(draws),
        together=together(int(card.settings["batch_size"] or 0), int(draws)),
        secret=secret,
        named=named,
        epsilon=lambda done: at(min(card.steps, math.ceil(done / apart) * apart)),
    )


def together(batch_size: int, draws: int) -> int:
    """Return how many images go through the network at once, as many rows as a plain step has."""
    return max(1, batch_size // draws)


def typical_norm(recipe: Recipe, store: Store, phase: Phase, untrained: Compartment) -> float:
    """Return the median norm of the gradients, at the start, of images that are drawn from a released closed form.

    Whatever is computed from what was released costs no privacy. The norm depends on the backbone: from 0.0003 to 0.3.

    Args:
        recipe: makes the module.
        store: with the backbone.
        phase: names the source.
        untrained: what was released.
    """
    module: CompartmentalizedDiffusion = recipe.module()
    public = begin(module, store, phase, untrained, None)
    draw, form = generator(module.hparams["seed"], phase.source, "clipping"), untrained.closed_form
    cluster = form.draw_cluster(torch.rand(DRAWN, generator=draw, dtype=torch.float64))
    images = to_uint8(form.draw(torch.randn(DRAWN, *public.closed_form.shape, generator=draw), cluster, 0.0))
    draws = recipe.privacy.draws
    at_once = together(int(recipe.training["batch_size"] or 0), draws)
    nothing_secret = PrivateSteps(1, 1.0, DRAWN, 0.0, math.inf, draws, at_once, b"clipping", {}, lambda done: 0.0)
    return float(norms(*module.private_losses(nothing_secret, images)).median())


def begin(
    module: CompartmentalizedDiffusion, store: Store, phase: Phase, untrained: Compartment, steps: PrivateSteps | None
) -> Public:
    """Prepare the training of a private source's prompt, on the backbone of a store; return its `Public`."""
    backbone, public = unpack_backbone(*store.read_backbone())
    module.backbone.load_state_dict(backbone.state_dict())
    module.begin_source(phase, public, ReleasedDraft(untrained.closed_form, untrained.n), untrained, steps)
    return public


def train_private(
    recipe: Recipe, store: Store, phase: Phase, untrained: Compartment, card: Card, images: Tensor, steps: PrivateSteps
) -> Compartment:
    """Return a private source's compartment with its prompt; what was interrupted goes on where it stood.

    Args:
        recipe: makes module and trainer.
        store: with the backbone.
        phase: names the source.
        untrained: what was released.
        card: what the compartment's card will be.
        images: uint8 [n, channel, height, width].
        steps: how it is trained.
    """
    module: CompartmentalizedDiffusion = recipe.module()
    begin(module, store, phase, untrained, steps)
    inputs, clock = asdict(card) | {"named": dict(steps.named)}, Clock(phase)
    folder = training_folder(store, phase.source)
    for place in recipe.outside:
        note_output(store.runs, place, [phase.source])
    with clock.part("training", f"{steps.count} private training steps"):
        train(
            recipe, module, None, folder, steps.count, inputs, lambda done: PoissonBatches(images, steps, done).loader()
        )
    clock.save(folder)
    return module.compartments[phase.source]


def training_folder(store: Store, source: str) -> Path:
    """Return where the logs and the checkpoint of a private source's training lie; they are its owner's."""
    return store.runs / "sources" / source / "prompt"


def keep_form(own: Path, form: Gaussians, n: int, named: Mapping[str, str | int | float]) -> None:
    """Keep a released closed form in its owner's folder while the prompt is trained: a second release would cost."""
    write_tensors(own / RELEASED, form.tensors(), {"n": n, "named": dict(named)})


def kept_form(
    own: Path, named: Mapping[str, str | int | float], shape: tuple[int, int, int]
) -> tuple[Gaussians, int] | None:
    """Return the closed form and the number of images that an interrupted fit has released, if it was of the same."""
    try:
        tensors, metadata = read_tensors(own / RELEASED)
    except StoreError:
        return None
    if metadata["named"] != named:
        return None
    return Gaussians.from_tensors(tensors, shape), int(metadata["n"])
