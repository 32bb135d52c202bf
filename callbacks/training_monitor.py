"""How a training goes: loss by noise level, norms of gradient and parameters, images per second."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.board import log_scalars
from cdm_lightning.denoiser import SIGMA_MIN
from cdm_lightning.loss import noise_quartile
from cdm_lightning.module import CompartmentalizedDiffusion

QUARTILES = ("least_noise", "low_noise", "high_noise", "most_noise")


class TrainingMonitor(Callback):
    """Logs, every few steps: the mean loss in each quarter of the noise law since the last time, the norms
    of the gradient (not clipped) and of what is trained, the learning rate, and the images per second.

    Args:
        every: steps between two rows.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._gradient = 0.0
        self._restart(pl_module.device)

    def _restart(self, device: torch.device) -> None:
        self._loss, self._count = torch.zeros(4, device=device), torch.zeros(4, device=device)
        self._start, self._images = time.perf_counter(), 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradient before it is clipped."""
        if (trainer.global_step + 1) % self.every == 0:
            parameters = pl_module.parameters()
            self._gradient = norm(parameter.grad for parameter in parameters if parameter.grad is not None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Count the batch; log, and begin anew."""
        assert isinstance(pl_module, CompartmentalizedDiffusion)
        quartile = noise_quartile(outputs["sigma"], SIGMA_MIN, pl_module.highest_sigma)
        self._loss.index_add_(0, quartile, outputs["by_image"].to(self._loss))
        self._count += quartile.bincount(minlength=4)
        self._images += len(quartile) * trainer.world_size
        if trainer.global_step % self.every == 0:
            self._log(trainer, pl_module)
            self._restart(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.sanity_checking:
            return
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on: a validation is no training."""
        if trainer.sanity_checking:
            return
        self._start += time.perf_counter() - self._paused

    def _log(self, trainer: Trainer, module: CompartmentalizedDiffusion) -> None:
        step = trainer.global_step - 1
        means = zip(QUARTILES, (self._loss / self._count).tolist(), self._count.tolist(), strict=True)
        log_scalars(trainer, "loss_by_noise", {name: mean for name, mean, count in means if count}, step)
        norms = {"gradient": self._gradient, "parameters": norm(module.trained.parameters())}
        log_scalars(trainer, "norm", norms, step)
        speed = self._images / (time.perf_counter() - self._start)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        log_scalars(trainer, "training", {"images_per_second": speed, "learning_rate": rate}, step)


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all numbers in tensors together."""
    return float(torch.stack([torch.linalg.vector_norm(tensor.detach()) for tensor in tensors]).norm())
