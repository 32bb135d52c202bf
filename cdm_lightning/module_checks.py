"""Settings of the LightningModule that are out of range: refused, with the key."""

import math

from cdm_lightning.denoiser import SIGMA_MIN
from cdm_lightning.errors import BadInput


def check_backbone_steps(steps: int, finished: bool) -> None:
    """Raise BadInput if a backbone that is not finished would not be trained; a guided one has to learn its guide."""
    if steps < (0 if finished else 1):
        unless = "at least 1, or 0 with model.guide none and model.backbone.init_args.weights"
        raise BadInput(f"model.backbone_steps is {steps}; expected {unless}")


def check_counts(**counts: int) -> None:
    """Raise BadInput that names the first setting below 1."""
    for key, value in counts.items():
        if value < 1:
            raise BadInput(f"model.{key} is {value}; expected at least 1")


def check_shares(**shares: float) -> None:
    """Raise BadInput that names the first setting outside [0, 1)."""
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise BadInput(f"model.{key} is {value}; expected at least 0 and below 1")


def check_rates(**rates: float | None) -> None:
    """Raise BadInput that names the first learning rate that is given and is none."""
    for key, value in rates.items():
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"model.{key} is {value}; expected a number above 0")


def check_switch(sigma: float) -> None:
    """Raise BadInput unless it is a noise level, or inf."""
    if not sigma > SIGMA_MIN:
        raise BadInput(f"model.sigma_switch is {sigma}; expected a noise level above {SIGMA_MIN}, or inf")
