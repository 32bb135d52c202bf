"""What a fit needs from outside: data of sources, and fresh module, data and trainer for every phase."""

from pathlib import Path
from typing import Any, Literal, Protocol

from lightning.pytorch import Trainer
from torch import Tensor

from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.phase import Phase
from cdm_lightning.privacy import Privacy


class SourceData(Protocol):
    """What a fit asks of the data; `datamodules.ShardDataModule` is ours.

    Attributes:
        public_mix: the share of every training batch of a source that is drawn from `public`.
    """

    public_mix: float

    def prepare(self) -> None: ...
    def available_sources(self) -> list[str]: ...
    def chosen_sources(self) -> list[str]: ...
    def has_public(self) -> bool: ...
    def public_is_filtered(self) -> bool: ...
    def verify(self, source: str) -> Any: ...
    def data_sha256(self, source: str) -> str: ...
    def class_counts(self, source: str) -> dict[str, int]: ...
    def images(self, source: str, part: Literal["train", "heldout"]) -> tuple[list[str], Tensor, list[str]]: ...
    def open(self, source: str, first_batch: int = 0) -> None: ...


class Recipe(Protocol):
    """Makes fresh objects from a configuration, so that no phase inherits anything from another.

    Attributes:
        max_steps: training steps of each source.
        privacy: which sources are private.
        training: the settings beside the module's own that change what is trained.
        device: what is trained on.
        watched: whether anything takes what a validation of the composed model finds: a logger, a caller's callbacks.
        outside: folders outside the store into which loggers of the caller's write.
    """

    max_steps: int
    privacy: Privacy
    training: dict[str, str | int | float | bool | None]
    device: str
    watched: bool
    outside: list[Path]

    def module(self) -> CompartmentalizedDiffusion: ...
    def data(self) -> Any: ...
    def trainer(self, phase: Phase, folder: Path, max_steps: int) -> Trainer: ...
    def save_config(self, phase: Phase, file: Path) -> None: ...
