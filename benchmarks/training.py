"""The training of a network on any loss, as a fit trains a backbone."""

from collections.abc import Callable

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone
from cdm_lightning.ema import EMA
from cdm_lightning.schedule import learning_rate_factor


def train_network(network: Backbone, loss_at: Callable[[int], Tensor], *, steps: int, rate: float) -> None:
    """Train every parameter by a loss of each step, with the optimizer, schedule, clipping and EMA of a fit."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    ema = EMA(network, 0.999)
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
    ema.apply_average()
