"""Sampling images from a store: pictures, a grid, and each image's credits."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cdm_lightning.attribution import credits_of
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.credit_bars import annotated
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.guidance import GuidedDenoiser, check_guidance
from cdm_lightning.images import encode_png, to_uint8
from cdm_lightning.outputs import note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.sampling import Churn, Method, OnStep, karras_sigmas, sample
from cdm_lightning.seeding import image_generators, normal
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy

Start = Literal["noise", "switch"]
CHANNEL_NAMES = {1: "L", 3: "RGB"}


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
        if self.churn > 0 and self.sampler != "heun":
            raise BadInput(f"--churn is {self.churn}, but --sampler {self.sampler} has no churn; only heun has")
        check_guidance(self.guidance)
        if self.guidance != 1 and self.label is None:
            raise BadInput(f"--guidance {self.guidance:g} draws images towards a class: name it with --label")
        if self.sigma_switch is not None and not float(self.sigma_switch) > SIGMA_MIN:
            raise BadInput(f"--sigma_switch is {self.sigma_switch}; expected a noise level above {SIGMA_MIN}, or inf")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise BadInput(f"--device is {self.device}, but there is no CUDA device here; use cpu")


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


def below(sigmas: Tensor, switch: float) -> Tensor:
    """Return the switch, and the levels of a grid that are below it."""
    return torch.cat([sigmas.new_tensor([switch]), sigmas[sigmas < switch]])


def generate(
    store_path: Path, sources: str | list[str], settings: Settings, out: Path, annotate: bool = False
) -> dict[str, Any]:
    """Sample into the folder `out`: 00000.png, ..., grid.png and credits.json; return what credits.json holds.

    Args:
        store_path: the store.
        sources: `all`, or names.
        settings: how.
        out: the folder.
        annotate: whether grid.png also shows a bar of credits below each image.

    Raises:
        BadInput: the store, a source, or a setting cannot be used.
    """
    check_folder(out)
    store = Store.open(store_path)
    switch = None if settings.sigma_switch is None else float(settings.sigma_switch)
    compartments = open_compartments(store, sources, sigma_switch=switch, device=settings.device)
    branches = [compartments] if settings.label is None else [compartments, compartments.under(settings.label)]
    composed = branches[-1].composed(settings.strategy)
    model = guided(composed, compartments, settings)
    floor = compartments.public.calibration.floor
    note_output(store.runs, out, composed.sources)
    pictures: list[Tensor] = []
    rows: list[dict[str, Any]] = []
    for indices in batched(settings.n, settings.batch_size):
        batch = sample_batch(model, store.info.image_shape, indices, settings)
        pictures.append(to_uint8(batch.images).cpu())
        rows += image_rows(composed, batch, indices, floor, settings.seed)
    report = {
        "store": str(store_path),
        "sources": composed.sources,
        **{name: value for name, value in asdict(settings).items() if name not in ("batch_size", "device")},
        "sigma_switch": finite_or_text(compartments.sigma_switch),
        "network_evaluations_per_image": sum(branch.evaluations for branch in branches) / settings.n,
        "backbone_sha256": store.info.backbone_sha256,
        "torch": torch.__version__,
        "images": rows,
    }
    images = torch.cat(pictures)
    write_pictures(out, images, report, credited_grid(images, report) if annotate else None)
    return report


def check_folder(out: Path) -> None:
    """Raise BadInput if there is a file where a command shall make its folder."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; name a folder")


def guided(
    composed: ComposedDenoiser, everything: Compartments, settings: Settings
) -> ComposedDenoiser | GuidedDenoiser:
    """Return the composed model of a class, drawn towards the class or away from it if the settings say so."""
    if settings.guidance == 1:
        return composed
    return GuidedDenoiser(composed, everything.composed(settings.strategy), settings.guidance)


def batched(n: int, size: int) -> Iterator[range]:
    """Cut 0..n-1 into ranges of at most `size`."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def image_rows(
    composed: ComposedDenoiser, batch: Batch, indices: range, floor: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield what credits.json says of each image."""
    credit = credits_of(composed, batch.images.clamp(-1, 1), floor, seed)
    for row, k in enumerate(indices):
        course = [[sigma, by_source(composed.sources, weights[:, row])] for sigma, weights in batch.trajectory]
        yield {
            "file": f"{k:05d}.png",
            "credits": by_source(composed.sources, credit[:, row]),
            "drawn": None if batch.drawn is None else batch.drawn[row],
            "trajectory": course,
        }


def by_source(sources: Sequence[str], weights: Tensor) -> dict[str, float]:
    """Return weights [source] by name, to six decimals."""
    return {source: round(float(weight), 6) for source, weight in zip(sources, weights, strict=True)}


def finite_or_text(value: float) -> float | str:
    """Return a number as JSON can hold it: inf as a text."""
    return value if math.isfinite(value) else str(value)


def write_pictures(out: Path, images: Tensor, report: dict[str, Any], sheet: Tensor | None = None) -> None:
    """Write images, uint8 [n, channel, height, width], grid (or `sheet`) and credits; credits.json comes last."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for k, image in enumerate(images):
        (out / f"{k:05d}.png").write_bytes(encode_png(image))
    (out / "grid.png").write_bytes(encode_png(grid(images) if sheet is None else sheet))
    (out / "credits.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def credited_grid(images: Tensor, report: dict[str, Any]) -> Tensor:
    """Return a near-square grid of images, uint8 [n, channel, height, width], with the credits that a report holds."""
    shares = torch.tensor([[row["credits"][source] for row in report["images"]] for source in report["sources"]])
    return annotated(enlarged(images), shares, report["sources"], math.ceil(math.sqrt(len(images))))


def enlarged(images: Tensor) -> Tensor:
    """Repeat the pixels of images [..., height, width] narrower than 64 until they are nearly that wide."""
    scale = max(1, 64 // images.shape[-1])
    return images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def grid(images: Tensor, gap: int = 2) -> Tensor:
    """Lay images, uint8 [n, channel, height, width], out in a near-square grid on white; small ones are enlarged."""
    images = enlarged(images)
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = gap + (k // columns) * (height + gap), gap + (k % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def framed(cells: Tensor, gap: int = 2) -> Tensor:
    """Lay images, uint8 [row, column, channel, height, width], out in a table on white, `gap` pixels apart."""
    padded = torch.nn.functional.pad(cells, (gap, 0, gap, 0), value=255)
    rows, columns, channels, height, width = padded.shape
    whole = padded.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return torch.nn.functional.pad(whole, (0, gap, 0, gap), value=255)
