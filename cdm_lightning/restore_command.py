"""The command line of `restore`: given images and a mask or a noise level, their restored pictures and credits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser, draw_source
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.generation import Batch, Settings, batched, finite_or_text
from cdm_lightning.given_images import MASKS, check_not_given, read_images, read_mask
from cdm_lightning.image_folder import by_source, image_rows, make_folder, write_pictures
from cdm_lightning.images import from_uint8, to_uint8
from cdm_lightning.outputs import check_folder, note_output
from cdm_lightning.packing import open_compartments
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.restoration import ConditionalDenoiser, Given, levels, restore
from cdm_lightning.seeding import generator, normal, uniform
from cdm_lightning.sheets import enlarged, framed
from cdm_lightning.source_choice import add_source_options, chosen_sources
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from cdm_lightning.versions import versions

SHARED = ("seed", "steps", "batch_size", "device")  # with `sample`
UNKNOWN_GREY = 128  # what unknown pixels are painted with in grid.png
REFUSED = {
    "assign": "draws a source without a look at the given image: choose posterior or routed",
    "uniform": "weighs the sources without a look at the given image: choose posterior",
    "draft": "finishes one draft for the whole image, which knows nothing of exact pixels: choose posterior",
}
PACKAGES = ("cdm_lightning", "torch", "pillow")


def restore_parser() -> Parser:
    """Return the parser of `restore`."""
    parser = new_parser(
        "restore", "Fill in unknown pixels of given images, or denoise them, with each image's credits."
    )
    parser.add_argument("images", type=str, nargs="+", help="PNG or JPEG files, or folders of them")
    parser.add_argument("--store", type=str, required=True, help="the store")
    add_source_options(parser)
    parser.add_argument("--out", type=str, required=True, help="folder for 00000.png, ..., grid.png and credits.json")
    parser.add_argument(
        "--mask",
        type=str | None,
        default=None,
        help=f"what is unknown: the white pixels of this PNG or JPEG file, or {', '.join(MASKS)}",
    )
    parser.add_argument(
        "--sigma",
        type=float | None,
        default=None,
        help="level of the noise that the images have, in units of [-1, 1]; by default the known pixels are exact",
    )
    parser.add_argument("--strategy", type=Strategy, default="posterior", help="posterior or routed")
    parser.add_argument("--n", type=int, default=1, help="draws per image")
    parser.add_argument("--mean", action="store_true", help="the mean of what the image may be, not a draw")
    parser.add_class_arguments(Settings, skip=set(Settings.__dataclass_fields__) - set(SHARED))
    parser.add_argument("--json", type=str | None, default=None, help="also write the report to this file")
    return parser


def check(config: Any) -> None:
    """Raise BadInput for options that do not fit together or are out of range."""
    if config.mask is None and config.sigma is None:
        raise BadInput("nothing to restore: say what is unknown (--mask), or how noisy the images are (--sigma)")
    if config.sigma is not None and not SIGMA_MIN <= config.sigma <= SIGMA_MAX:
        raise BadInput(f"--sigma is {config.sigma:g}; expected {SIGMA_MIN} to {SIGMA_MAX:g}, in units of [-1, 1]")
    if config.strategy in REFUSED:
        raise BadInput(f"strategy '{config.strategy}' {REFUSED[config.strategy]}")
    if config.mean and config.n != 1:
        raise BadInput(f"--n is {config.n}, but there is one mean: leave out --n or --mean")
    check_folder(Path(config.out))
    given = (*config.images, *([config.mask] if config.mask else []))
    check_not_given("--json", config.json, given)
    out = Path(config.out).resolve()
    for path in map(Path, given):
        if out == (path if path.is_dir() else path.parent).resolve():
            raise BadInput(f"--out {config.out} holds {path}, which would be written over: name another folder")
        if path.is_dir() and out.is_relative_to(path.resolve()):
            raise BadInput(f"--out {config.out} lies in {path}, whose images are restored: name another folder")


def restore_images(config: Any) -> dict[str, Any]:
    """Restore what a parsed command line names into its folder `out`, and return what credits.json holds.

    Raises:
        BadInput: the store, a source, an image, the mask or a setting cannot be used.
    """
    check(config)
    settings = Settings(n=config.n, **{name: config[name] for name in SHARED})
    store = Store.open(Path(config.store))
    sources = chosen_sources(config)
    names, images = read_images(config.images, store.info.image_shape)
    known = ~read_mask(config.mask, store.info.image_shape)
    sha256 = store.tensors_sha256(sources)
    compartments = open_compartments(store, sources, sigma_switch=None, device=settings.device)
    restorer = Restorer(compartments, known.to(settings.device), config.sigma or 0.0, settings, config.strategy)
    note_output(store.runs, Path(config.out), compartments)
    results = [
        restorer.batch(images, indices, config.mean) for indices in batched(len(names) * config.n, settings.batch_size)
    ]
    pictures = torch.cat([picture for picture, _ in results])
    rows = [row for _, some in results for row in some]
    for k, row in enumerate(rows):
        row |= {"image": names[k // config.n], "draw": k % config.n}
    report = {
        "store": str(store.path),
        "sources": list(compartments),
        "mask": config.mask,
        "sigma": config.sigma,
        "mean": config.mean,
        "n": config.n,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "strategy": config.strategy,
        "seed": settings.seed,
        "sigma_switch": finite_or_text(compartments.sigma_switch),
        "network_evaluations_per_image": compartments.evaluations / len(rows),
        "backbone_sha256": store.info.backbone_sha256,
        "versions": versions(*PACKAGES),
        "images": rows,
    }
    make_folder(Path(config.out), store, sources, sha256)
    write_pictures(Path(config.out), pictures, report, sheet(images, known, pictures))
    return report


@dataclass(frozen=True)
class Restorer:
    """A composed model that restores images of one mask and one noise level.

    Attributes:
        compartments: the opened sources.
        known: bool [channel, height, width].
        tau: noise level of the known pixels.
        settings: n draws per image, seed, steps, device.
        strategy: `posterior` or `routed`.
    """

    compartments: Compartments
    known: Tensor
    tau: float
    settings: Settings
    strategy: Strategy

    def batch(self, images: Tensor, indices: range, mean: bool) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return draw k % n of image k // n for all k of `indices`, uint8, and what credits.json says of each.

        Args:
            images: all images, uint8 [image, channel, height, width].
            indices: k of each draw; its noise depends on (seed, image, draw) alone.
            mean: whether the mean is wanted, and no draw.
        """
        composed, public = self.compartments.composed("posterior"), self.compartments.public
        given = Given(
            from_uint8(images[[k // self.settings.n for k in indices]]).to(self.known.device), self.known, self.tau
        )
        denoise = ConditionalDenoiser(
            composed, self.compartments.closed_forms, public.calibration, given, self._normal(given, indices, "evened")
        )
        with torch.inference_mode():
            result = Batch(denoise.mean(), None, []) if mean else self._draw(composed, denoise, indices)
            rows = list(image_rows(composed, result, indices, public.calibration.floor, self.settings.seed))
            for row, weights in zip(rows, denoise.weights_of_given().T, strict=True):
                row["given"] = by_source(composed.sources, weights)
        return to_uint8(result.images).cpu(), rows

    def _draw(self, composed: ComposedDenoiser, denoise: ConditionalDenoiser, indices: range) -> Batch:
        sources, course = None, list[tuple[float, Tensor]]()
        if self.strategy == "routed":
            followed = draw_source(denoise.weights_of_given(), uniform(self._generators(indices, "source")))
            denoise.follow(followed)
            sources = [composed.sources[i] for i in followed.tolist()]

        def on_step(x: Tensor, sigma: Tensor) -> None:
            course.append((round(float(sigma[0]), 6), denoise.weights(x, sigma)))

        sigmas = levels(denoise.given, self.settings.steps, composed.sigma_switch)
        return Batch(restore(denoise, self._normal(denoise.given, indices, "noise"), sigmas, on_step), sources, course)

    def _generators(self, indices: range, purpose: str) -> Iterator[torch.Generator]:
        n = self.settings.n
        return (generator(self.settings.seed, "restore", purpose, k // n, k % n) for k in indices)

    def _normal(self, given: Given, indices: range, purpose: str) -> Tensor:
        return normal(given.image.shape, list(self._generators(indices, purpose)), self.known.device)


def sheet(images: Tensor, known: Tensor, restored: Tensor, gap: int = 2) -> Tensor:
    """Return a picture, uint8, with a row per image: as given, what is known of it (if not all), its restored draws.

    Args:
        images: uint8 [image, channel, height, width].
        known: bool [channel, height, width].
        restored: uint8 [image * draw, channel, height, width].
        gap: white pixels around every image.
    """
    masked = [] if known.all() else [torch.where(known.cpu(), images, UNKNOWN_GREY)[:, None]]
    cells = torch.cat([images[:, None], *masked, restored.reshape(len(images), -1, *images.shape[1:])], 1)
    return framed(enlarged(cells), gap)
