"""A callback that notes which samples each rank has trained on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class KeyLog(Callback):
    """Appends the keys of every batch to a file of its rank.

    Args:
        folder: where `rank0.txt`, `rank1.txt`, ... are written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, list[str]], batch_idx: int
    ) -> None:
        """Note the batch: one line, keys with spaces between them."""
        with (self.folder / f"rank{trainer.global_rank}.txt").open("a") as file:
            file.write(" ".join(batch["key"]) + "\n")
