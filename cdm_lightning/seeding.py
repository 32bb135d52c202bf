"""Random numbers from explicit generators, named by what they are for; global state is never read or moved."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SEEDS = 2**32  # of NumPy's generator, which draws the subsets of KID


def stable_hash(*parts: str | int) -> int:
    """Return a 63-bit hash of the parts (sha256), the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def unit_hash(*parts: str | int) -> float:
    """Return a number in [0, 1) that depends on the parts alone: the draw behind every split."""
    return stable_hash(*parts) / 2**63


def generator(*parts: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that is seeded by the hash of the parts, for instance (seed, source, step).

    PyTorch's generator of the CPU uses the last 32 bits of it: two of 50,000 images start at the same noise with
    probability 1/4.
    """
    return torch.Generator(device=device).manual_seed(stable_hash(*parts))


def image_generators(seed: int, indices: Sequence[int], purpose: str) -> list[torch.Generator]:
    """Return one generator per image k, a function of (seed, k, purpose) alone: results do not depend on batches."""
    return [generator(seed, purpose, k) for k in indices]


def uniform(generators: Iterable[torch.Generator]) -> Tensor:
    """Draw one number in [0, 1) per generator, float64, on the CPU."""
    return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])


def normal(
    shape: Sequence[int], generators: torch.Generator | Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Tensor:
    """Draw standard normal numbers of `shape` [batch, ...], float32, on the CPU; then move them to `device`.

    Args:
        shape: the shape of the result; the first dimension is the batch.
        generators: one generator for all, or one per image of the batch.
        device: where the result shall lie.
    """
    if isinstance(generators, torch.Generator):
        return torch.randn(tuple(shape), generator=generators).to(device)
    return torch.stack([torch.randn(tuple(shape[1:]), generator=g) for g in generators]).to(device)
