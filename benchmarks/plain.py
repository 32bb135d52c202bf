"""The opponent of the guided backbone: a plain EDM network, trained on one set of images, or tuned to another."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.training import train_network
from cdm_lightning.backbone import Backbone
from cdm_lightning.denoiser import EDM, SIGMA_MAX, SIGMA_MIN, denoise, per_image
from cdm_lightning.loss import denoising_loss, draw_sigma
from cdm_lightning.packing import build_backbone
from cdm_lightning.seeding import generator
from cdm_lightning.tensor_files import read_tensors, write_tensors

REPORT_EVERY = 200


def plain_network(metadata: dict[str, dict[str, object]]) -> Backbone:
    """Return a fresh network of the size that a store's backbone has, without the guide."""
    backbone = metadata["backbone"]
    init_args = backbone["init_args"]
    assert isinstance(init_args, dict)
    network = build_backbone(str(backbone["class_path"]), init_args | {"guided": False})
    network.initialize(generator(0, "plain", "start"))
    return network


def train_plain(network: Backbone, images: Tensor, *, steps: int, rate: float, batch: int, name: str) -> None:
    """Train every parameter, by the same loss, noise law, optimizer, schedule and EMA as a fit does."""

    def loss_at(step: int) -> Tensor:
        draw = generator(0, name, "train", step)
        x_0 = images[torch.randint(len(images), (batch,), generator=draw)]
        sigma = draw_sigma(batch, SIGMA_MIN, SIGMA_MAX, draw)
        x = x_0 + per_image(sigma, x_0) * torch.randn(x_0.shape, generator=draw)
        loss = denoising_loss(denoise(EDM(), network, x, sigma), x_0, EDM().c_out(sigma)).mean()
        if step % REPORT_EVERY == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
        return loss

    train_network(network, loss_at, steps=steps, rate=rate)


def cached(network: Backbone, path: Path, train: Callable[[], None]) -> None:
    """Load the network from `path`, or train it and write it there: a run that was cut goes on."""
    if not path.exists():
        train()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, network.state_dict(), {})
    network.load_state_dict(read_tensors(path)[0])
    network.eval()
