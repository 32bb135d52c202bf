"""Sampling images of a composed model, batch by batch: the noise, the sampler, and what is noted on the way."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.guidance import GuidedDenoiser, check_guidance
from cdm_lightning.sampling import Churn, Method, OnStep, karras_sigmas, sample
from cdm_lightning.seeding import image_generators, normal
from cdm_lightning.strategy import Strategy

Start = Literal["noise", "switch"]


@dataclass(frozen=True)
class Settings:
    """How images are sampled.

    Args:
        n: number of images.
        label: a class label, for images of this class only; the store needs compartments with class labels.
        guidance: how strongly images are drawn towards `label` (Ho and Salimans 2022): 1 is the class as it is, 0
            ignores it, more than 1 makes the class plainer and the images less varied.
        seed: the noise of image k is a function of (seed, k) alone.
        strategy: how sources are composed: `routed`, `assign`, `draft`, `posterior` or `uniform`.
        sampler: `heun` evaluates D twice a step; `dpmpp_2m` (DPM-Solver++) and `ancestral` (with noise) once.
        steps: sampler steps, at least 2.
        churn: noise that `heun` adds and removes again on the way (Karras et al. 2022, S_churn); 0 is deterministic.
        sigma_switch: above this noise level every denoiser is a closed form; by default the store's own.
        start: `noise` takes all steps from pure noise; `switch` draws from the closed forms at `sigma_switch`, and
            takes only the steps below: other images of the same law, at no cost above it, however many sources.
        batch_size: images sampled at a time.
        device: where to compute.
    """

    n: int = 64
    label: str | None = None
    guidance: float = 1.0
    seed: int = 0
    strategy: Strategy = "routed"
    sampler: Method = "heun"
    steps: int = 18
    churn: float = 0.0
    sigma_switch: float | Literal["inf"] | None = None
    start: Start = "noise"
    batch_size: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("steps", 2), ("batch_size", 1), ("churn", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name} is {getattr(self, name)}; expected at least {least}")
        if not math.isfinite(self.churn):
            raise BadInput(f"--churn is {self.churn}; expected a number")
        if self.churn > 0 and self.sampler != "heun":
            raise BadInput(f"--churn is {self.churn}, but --sampler {self.sampler} has no churn; only heun has")
        check_guidance(self.guidance)
        if self.guidance != 1 and self.label is None:
            raise BadInput(f"--guidance {self.guidance:g} draws images towards a class: name it with --label")
        if self.sigma_switch is not None and not float(self.sigma_switch) > SIGMA_MIN:
            raise BadInput(f"--sigma_switch is {self.sigma_switch}; expected a noise level above {SIGMA_MIN}, or inf")
        check_device(self.device)


def check_device(name: str) -> None:
    """Raise BadInput unless this is a device that is there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"--device is {name}; expected cpu, or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device is {name}; expected cpu, or cuda")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise BadInput(f"--device is {name}, but there is no such CUDA device here; use cpu")


@dataclass(frozen=True)
class Batch:
    """Sampled images and what is known of them.

    Attributes:
        images: x_0 [batch, channel, height, width], not clipped.
        drawn: the source that each image followed, if the strategy draws one.
        trajectory: (sigma, w [source, batch]) at the start of every step, if they were noted.
    """

    images: Tensor
    drawn: list[str] | None
    trajectory: list[tuple[float, Tensor]]


def sample_batch(
    composed: ComposedDenoiser | GuidedDenoiser,
    shape: tuple[int, int, int],
    indices: Sequence[int],
    settings: Settings,
    observe: OnStep | None = None,
    weigh: bool = True,
) -> Batch:
    """Sample the images `indices` of one run.

    Args:
        composed: the composed denoiser.
        shape: (channel, height, width).
        indices: k of each image; its noise and its draw depend on (seed, k) alone.
        settings: sampler, steps, seed.
        observe: called at the start of every step with x [batch, ...] and its level sigma [batch].
        weigh: whether to note the weights along the way.
    """
    trajectory = composed.start(settings.seed, indices)
    noise = normal((len(indices), *shape), image_generators(settings.seed, indices, "noise"), settings.device)
    course: list[tuple[float, Tensor]] = []

    def on_step(x: Tensor, sigma: Tensor) -> None:
        trajectory.on_step(x, sigma)
        if weigh:
            course.append((round(float(sigma[0]), 6), composed.weights(x, sigma)))
        if observe is not None:
            observe(x, sigma)

    sigmas = karras_sigmas(settings.steps, SIGMA_MIN, SIGMA_MAX, through=composed.sigma_switch)
    with torch.inference_mode():
        if settings.start == "switch":
            first, sigmas = trajectory.at_switch(noise), below(sigmas, composed.sigma_switch)
            noise = first / float(sigmas[0])
        images = sample(
            trajectory,
            noise,
            sigmas,
            method=settings.sampler,
            generator=image_generators(settings.seed, indices, "churn"),
            on_step=on_step,
            churn=Churn(settings.churn),
            jump=trajectory.jump,
        )
    drawn = None if trajectory.drawn is None else [composed.sources[i] for i in trajectory.drawn.tolist()]
    return Batch(images, drawn, course)


def check_sampled(images: Tensor) -> None:
    """Raise BadInput unless every number of sampled images [batch, ...] is finite."""
    if not bool(images.isfinite().all()):
        raise BadInput(
            "the sampler ran away to numbers that are no image, so nothing is written: choose a smaller --guidance, "
            "more --steps or another --sampler"
        )


def below(sigmas: Tensor, switch: float) -> Tensor:
    """Return the switch, and the levels of a grid that are below it."""
    return torch.cat([sigmas.new_tensor([switch]), sigmas[sigmas < switch]])


def batched(n: int, size: int) -> Iterator[range]:
    """Cut 0..n-1 into ranges of at most `size`."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def finite_or_text(value: float) -> float | str:
    """Return a number as JSON can hold it: inf as a text."""
    return value if math.isfinite(value) else str(value)
