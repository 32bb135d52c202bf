"""The losses of training, as they come."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cdm_lightning.module import CompartmentalizedDiffusion


@contextmanager
def noted_losses(device: str) -> Iterator[dict[str, list[float]]]:
    """Give the losses by source of all that is trained meanwhile, which has to be on a device of that type."""
    seen: dict[str, list[float]] = {}
    original = CompartmentalizedDiffusion.training_step

    def noting(module: CompartmentalizedDiffusion, batch: dict[str, Any], batch_idx: int) -> dict[str, torch.Tensor]:
        outputs = original(module, batch, batch_idx)
        assert module.device.type == device
        seen.setdefault(module.phase.source, []).append(float(outputs["loss"].detach()))
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompartmentalizedDiffusion, "training_step", noting)
        yield seen
