"""What trains the one part of a phase: AdamW, or Muon for the layers of a network."""

from typing import Any, Literal

from timm.optim import Muon
from torch import nn
from torch.optim import AdamW, Optimizer

from cdm_lightning.backbone import Backbone
from cdm_lightning.prompts.copied import Copied

OptimizerName = Literal["adamw", "muon"]
BETAS = (0.9, 0.99)  # of Adam
MOMENTUM = 0.95  # of Muon
FEWEST = 4  # outputs of a layer with directions that are worth telling apart
WEIGHT_DECAY = 0.01  # of a backbone


def optimizer_for(trained: nn.Module, name: OptimizerName, rate: float) -> Optimizer:
    """Return the optimizer of a backbone or of a source's prompt.

    By `muon` the weights of a network's layers, convolutions as [out, in * height * width], move by the same length
    along all singular directions of their momentum (Jordan et al. 2024), scaled to the root mean square of Adam's steps
    (Liu et al. 2025, arXiv 2502.16982). Biases, norms, tables of embeddings, layers with fewer than 4 outputs, such as
    those that end in the colours of a pixel, and what is no network, as tokens and low-rank additions, take AdamW's
    steps all the same.
    """
    decay = WEIGHT_DECAY if isinstance(trained, Backbone) else 0.0
    if name == "adamw" or not isinstance(trained, Backbone | Copied):
        return AdamW(trained.parameters(), lr=rate, betas=BETAS, weight_decay=decay)
    layers = [layer for layer in trained.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    wide = [layer.weight for layer in layers if len(layer.weight) >= FEWEST]
    known = {id(weight) for weight in wide}
    others = [parameter for parameter in trained.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"params": wide, "use_muon": True, "nesterov": True},
        {"params": others, "use_muon": False, "nesterov": False},  # with `nesterov` it would be NAdam
    ]
    return Muon(groups, lr=rate, weight_decay=decay, momentum=MOMENTUM, betas=BETAS)
