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
from cdm_lightning.fidelity import images_of_batches
from cdm_lightning.generation import Settings, finite_or_text
from cdm_lightning.intervals import REPEATS
from cdm_lightning.measurement import PACKAGES
from cdm_lightning.reference import identity_of
from cdm_lightning.tensor_files import Json, json_text, read_object, read_tensors, write_atomic, write_tensors
from cdm_lightning.versions import versions
from cdm_lightning.yardstick import Yardstick

ROW_FORMAT = 2  # of what a kept row holds
OF_THE_CONTENDER = ("strategy", "sigma_switch")  # settings that each contender has its own of
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Images of a contender: uint8 [n, channel, height, width], and network evaluations per image."""

    images: Tensor
    evaluations: float


@dataclass(frozen=True)
class Comparison:
    """Rows of contenders, in `folder`; what is there and still holds, as each file says itself, is not made again.

    `NAME.safetensors` holds images and network evaluations, `NAME.cost.json` seconds and memory: so another extractor
    samples nothing and measures no time. `NAME.EXTRACTOR.safetensors` holds features, `NAME.EXTRACTOR.json` the row
    with all that is measured, which comes last.

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
        path = self.folder / f"{contender.name}.{self.extractor.name}.json"
        identity = key_of(
            [
                ROW_FORMAT,
                *map(self.identity, (contender, base)),
                self.yardstick_identity,
                REPEATS,
                self._extractor_identity(),
            ]
        )
        row = _kept(path, identity)
        if row is not None:
            log.info("%s: up to date", contender.name)
            return row
        start = time.perf_counter()
        samples = self.samples(contender, opened)
        features = self.features(contender.name, samples.images)
        row = {
            "identity": identity,
            "name": contender.name,
            "model": contender.identity(),
            "by_class": bool(contender.class_counts),
            "sigma_switch": finite_or_text(opened.composed.sigma_switch),
            "network_evaluations_per_image": samples.evaluations,
            **self.cost(contender, opened, base, base_opened),
            "yardstick": self.yardstick.report(),
            **self.yardstick.measure(samples.images, features, self.settings.seed),
        }
        write_atomic(path, json_text(row).encode())
        log.info("%s: %d images, %.1f s", contender.name, self.settings.n, time.perf_counter() - start)
        return row

    def identity(self, contender: Contender) -> dict[str, Json]:
        """Return all that the samples of a contender depend on."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in OF_THE_CONTENDER}
        return {"model": contender.identity(), "settings": settings, **environment()}

    def _extractor_identity(self) -> dict[str, Json]:
        return {"name": self.extractor.name, "fingerprint": self.extractor.fingerprint}

    def samples(self, contender: Contender, opened: Opened) -> Samples:
        """Return samples of a contender, and keep them; or those that are kept, if they still hold."""
        path, identity = self.folder / f"{contender.name}.safetensors", self.identity(contender)
        try:
            tensors, metadata = read_tensors(path)
            if metadata["identity"] == identity:
                return Samples(tensors["images"], metadata["evaluations"])
        except StoreError:
            pass  # there are none yet, or they are damaged: they are sampled again
        shape, before = opened.compartments.public.closed_form.shape, opened.evaluations
        batches = opened.batches(self.settings.n, self.settings.batch_size)
        images = images_of_batches(batches, shape, self.settings).cpu()
        samples = Samples(images, (opened.evaluations - before) / self.settings.n)
        write_tensors(path, {"images": images}, {"identity": identity, "evaluations": samples.evaluations})
        return samples

    def features(self, name: str, images: Tensor) -> Tensor:
        """Return the features [n, dimension] of the images of a row, and keep them; or those that are kept."""
        path = self.folder / f"{name}.{self.extractor.name}.safetensors"
        identity = {**identity_of(images, self.extractor), **environment()}
        try:
            tensors, metadata = read_tensors(path)
            if metadata == identity:
                return tensors["features"]
        except StoreError:
            pass  # as for the samples
        features = self.extractor(images.to(self.settings.device))
        write_tensors(path, {"features": features}, identity)
        return features

    def cost(self, contender: Contender, opened: Opened, base: Contender, base_opened: Opened) -> dict[str, Json]:
        """Return seconds and memory of a contender, and keep them; or those that are kept. See `row`."""
        path, identity = self.folder / f"{contender.name}.cost.json", key_of([*map(self.identity, (contender, base))])
        kept = _kept(path, identity)
        if kept is None:
            seconds, ratio = seconds_in_turns(opened, base_opened, self.settings)
            kept = {
                "identity": identity,
                "seconds_per_image": seconds,
                "seconds_ratio": 1.0 if contender == base else ratio,
                "peak_memory": peak_memory(contender, self.settings),
            }
            write_atomic(path, json_text(kept).encode())
        return {name: value for name, value in kept.items() if name != "identity"}


def _kept(path: Path, identity: str) -> dict[str, Any] | None:
    """Return what a JSON file holds, or None if it is missing, damaged or of another identity."""
    try:
        row = read_object(path)
    except StoreError:
        return None
    return row if row.get("identity") == identity else None


def key_of(parts: Json) -> str:
    """Return the sha256 of all that something depends on, in hex."""
    return hashlib.sha256(json_text(parts).encode()).hexdigest()


def environment() -> dict[str, Json]:
    """Return what computes: versions, threads, kind of CPU, and of CUDA device if there is one."""
    device = {"cuda": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **device,
        "versions": dict(versions(*PACKAGES, "scikit-learn", "numpy")),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
