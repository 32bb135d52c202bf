"""Contenders compared: sampled from the same noise, measured with the same yardstick; a row each, which is kept."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm_lightning.contenders import Contender, Opened
from cdm_lightning.cost import peak_memory, seconds_in_turns
from cdm_lightning.errors import StoreError
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import sampled_images
from cdm_lightning.generation import Settings, finite_or_text
from cdm_lightning.intervals import REPEATS
from cdm_lightning.measurement import PACKAGES
from cdm_lightning.tensor_files import Json, json_text, read_object, read_tensors, write_atomic, write_tensors
from cdm_lightning.versions import versions
from cdm_lightning.yardstick import Yardstick

OF_THE_CONTENDER = ("strategy", "sigma_switch")  # settings that each contender has its own of
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Images of a contender: uint8 [n, channel, height, width], their features, network evaluations per image."""

    images: Tensor
    features: Tensor
    evaluations: float


@dataclass(frozen=True)
class Comparison:
    """Rows of contenders, in `folder`: NAME.safetensors with images and features, NAME.json with all that is measured.

    Both say what they depend on, so that what is there and still holds is not made again. A row's JSON comes last.

    Attributes:
        folder: where rows are kept.
        settings: how images are sampled, but for the strategy and the switch, which are the contender's.
        extractor: makes features.
        yardstick_identity: all that the yardstick depends on.
        make_yardstick: makes it, which takes long; it is asked for only if a row has to be measured.
    """

    folder: Path
    settings: Settings
    extractor: FeatureExtractor
    yardstick_identity: Mapping[str, Json]
    make_yardstick: Callable[[], Yardstick]

    @cached_property
    def yardstick(self) -> Yardstick:
        """Return the yardstick, made when it is first needed."""
        return self.make_yardstick()

    def row(self, contender: Contender, opened: Opened, base: Contender, base_opened: Opened) -> dict[str, Any]:
        """Return all that is measured of a contender, as JSON, and keep it; or what is kept, if it still holds.

        Args:
            contender: whose row it is.
            opened: the same, opened.
            base: whose seconds are measured in turns with those of the contender.
            base_opened: the same, opened.
        """
        path = self.folder / f"{contender.name}.json"
        identity = key_of(
            [self.identity(contender), self.identity(base), self.yardstick_identity, REPEATS, self.extractor.name]
        )
        row = _kept_row(path, identity)
        if row is not None:
            log.info("%s: up to date", contender.name)
            return row
        start = time.perf_counter()
        samples = self.samples(contender, opened)
        seconds, ratio = seconds_in_turns(opened, base_opened, self.settings)
        row = {
            "identity": identity,
            "name": contender.name,
            "model": contender.identity(),
            "sigma_switch": finite_or_text(opened.composed.sigma_switch),
            "network_evaluations_per_image": samples.evaluations,
            "seconds_per_image": seconds,
            "seconds_ratio": 1.0 if contender == base else ratio,
            "peak_memory": peak_memory(contender, self.settings),
            "yardstick": self.yardstick.report(),
            **self.yardstick.measure(samples.images, samples.features, self.settings.seed),
        }
        write_atomic(path, json_text(row).encode())
        log.info("%s: %d images, %.1f s", contender.name, self.settings.n, time.perf_counter() - start)
        return row

    def identity(self, contender: Contender) -> dict[str, Json]:
        """Return all that the samples of a contender, and their features, depend on."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in OF_THE_CONTENDER}
        return {
            "model": contender.identity(),
            "settings": settings,
            "extractor": {"name": self.extractor.name, "fingerprint": self.extractor.fingerprint},
            **environment(),
        }

    def samples(self, contender: Contender, opened: Opened) -> Samples:
        """Return samples of a contender, and keep them; or those that are kept, if they still hold."""
        path, identity = self.folder / f"{contender.name}.safetensors", self.identity(contender)
        try:
            tensors, metadata = read_tensors(path)
            if metadata["identity"] == identity:
                return Samples(tensors["images"], tensors["features"], metadata["evaluations"])
        except StoreError:
            pass  # there are none yet, or they are damaged: they are sampled again
        shape, before = opened.compartments.public.closed_form.shape, opened.compartments.evaluations
        images = sampled_images(opened.composed, shape, self.settings)
        evaluations = (opened.compartments.evaluations - before) / self.settings.n
        samples = Samples(images.cpu(), self.extractor(images), evaluations)
        tensors = {"images": samples.images, "features": samples.features}
        write_tensors(path, tensors, {"identity": identity, "evaluations": evaluations})
        return samples


def _kept_row(path: Path, identity: str) -> dict[str, Any] | None:
    """Return the row in a file, or None if it is missing, damaged or of another identity."""
    try:
        row = read_object(path)
    except StoreError:
        return None
    return row if row.get("identity") == identity else None


def key_of(parts: Json) -> str:
    """Return the sha256 of all that something depends on, in hex."""
    return hashlib.sha256(json_text(parts).encode()).hexdigest()


def environment() -> dict[str, Json]:
    """Return what computes: versions, threads, kind of CPU."""
    return {
        "versions": dict(versions(*PACKAGES, "scikit-learn", "numpy")),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
