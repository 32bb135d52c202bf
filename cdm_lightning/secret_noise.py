"""Normal noise from a secret: whoever does not know it cannot tell the noise from a true random draw.

A seed would not do: it is on every card, and who knows the noise can take it off. The stream is SHAKE-256 (FIPS 202)
of the secret and of all that the release depends on, this package's code included, so two releases never share their
noise, not even under one secret, and a release of the same images with the same settings is the same again.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdm_lightning.errors import BadInput

SHORTEST = 32  # bytes of a secret
GRID = 2.0**-20  # in deviations of the noise


def read_secret(path: str | None) -> bytes:
    """Return the secret in a file, or a fresh one of the operating system, which is kept nowhere.

    Raises:
        BadInput: the file cannot be read, or is too short to be a secret.
    """
    if path is None:
        return secrets.token_bytes(SHORTEST)
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise BadInput(f"privacy.secret_file {path} cannot be read ({error.strerror})") from error
    if len(secret) < SHORTEST:
        raise BadInput(
            f"privacy.secret_file {path} has {len(secret)} bytes; expected at least {SHORTEST} random ones, as "
            f"`head -c 32 /dev/urandom | base64 > FILE` writes them"
        )
    return secret


class SecretNoise:
    """A stream of numbers of a secret.

    Args:
        secret: at least 32 bytes that nobody else knows.
        release: all that the release depends on, the images included; another release has another stream.
    """

    def __init__(self, secret: bytes, release: Mapping[str, str | int | float]) -> None:
        named = json.dumps(dict(release), sort_keys=True).encode()
        self._key = hashlib.sha256(secret).digest() + hashlib.sha256(named).digest()
        self._drawn = 0

    def normal(self, count: int) -> Tensor:
        """Draw `count` independent standard normal numbers [count], float64 (Box and Muller 1958)."""
        first, second = self.uniform(2 * ((count + 1) // 2)).reshape(2, -1)
        radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]

    def uniform(self, count: int) -> Tensor:
        """Draw `count` independent numbers [count] between 0 and 1, both left out, float64."""
        stream = hashlib.shake_256(self._key + self._drawn.to_bytes(8, "big")).digest(8 * count)
        self._drawn += 1
        unit = (np.frombuffer(stream, dtype=">u8") >> np.uint64(11)).astype(np.float64) + 0.5
        return torch.from_numpy(unit * 2.0**-53)


def snapped(values: Tensor, deviation: float) -> Tensor:
    """Round noised values to a grid of 2^-20 deviations: the last bits of a float would tell what was added to what.

    Mironov 2012 (doi 10.1145/2382196.2382264): which floats a sum can have depends on its terms.
    """
    step = deviation * GRID
    return (values / step).round() * step
