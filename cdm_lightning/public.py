"""What is fitted on `public` beside the network: closed form, prior strength, draft error, calibration of evidence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdm_lightning.denoiser import SIGMA_MIN
from cdm_lightning.drafts import MEASURED_ON, DraftError, Drafts, denoising_errors, draft_fit
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.pseudo_sources import PRIOR_IMAGES, SIZES, PseudoSources
from cdm_lightning.seeding import generator, stable_hash

COVARIANCE_STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
MEAN_STRENGTHS = (0.1, 1.0, 10.0)
TEMPERATURES = torch.logspace(0, 3, 61)
HIGHEST_TEMPERED = 5.0  # Gaussians are trusted as they are at more noise
TEMPERED_LEVELS = 12


@dataclass(frozen=True)
class Public:
    """All that was fitted on `public`, kept in `backbone.safetensors`, so that one hash pins it.

    Attributes:
        closed_form: of all public images; few-sample sources are shrunk towards it.
        strength: of that prior.
        error: r(sigma, n) of out-of-fold drafts.
        calibration: of the evidence below `sigma_switch`.
        sigma_switch: above it every denoiser is a closed form.
        rank: directions per cluster of every closed form.
    """

    closed_form: Gaussians
    strength: Strength
    error: DraftError
    calibration: Calibration
    sigma_switch: float
    rank: int

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors; `from_tensors` is the inverse."""
        closed_form = {f"closed_form.{name}": tensor for name, tensor in self.closed_form.tensors().items()}
        scalars = (self.strength.mean, self.strength.covariance, self.calibration.floor, self.sigma_switch, self.rank)
        return closed_form | {
            "error.size": self.error.size,
            "error.sigma": self.error.sigma,
            "error.error": self.error.error,
            "calibration.sigma": self.calibration.sigma,
            "calibration.temperature": self.calibration.temperature,
            "scalars": torch.tensor(scalars, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> "Public":
        """Return what `tensors` came from; `shape` is (channel, height, width)."""
        closed_form = {name.removeprefix("closed_form."): tensor for name, tensor in tensors.items()}
        mean, covariance, floor, sigma_switch, rank = tensors["scalars"].tolist()
        return cls(
            Gaussians.from_tensors(closed_form, shape),
            Strength(mean, covariance),
            DraftError(tensors["error.size"], tensors["error.sigma"], tensors["error.error"]),
            Calibration(tensors["calibration.sigma"], tensors["calibration.temperature"], floor),
            sigma_switch,
            int(rank),
        )


def fit_public(
    pseudo: PseudoSources, *, seed: int, rank: int, sigma_switch: float, mu: float | None = None
) -> tuple[Public, Drafts]:
    """Fit all that depends on `public` alone, and the drafts that the guided backbone is trained on.

    With `mu`, drafts, their errors and the calibration are those of private sources (see `drafts.draft_fit`).
    """
    priors = [
        Gaussians.fit(pseudo.without_group(group), seed=stable_hash(seed, "public", "prior", group), rank=rank)
        for group in pseudo.groups()
    ]
    strength = fit_strength(pseudo, priors, seed, rank)
    drafts = Drafts.fit(pseudo, priors, strength, rank, pseudo.sizes(), mu=mu)
    order = torch.tensor(sorted(range(len(pseudo.keys)), key=lambda row: stable_hash("prior", pseudo.keys[row])))
    closed_form = Gaussians.fit(
        pseudo.images[order[: 2 * PRIOR_IMAGES]], seed=stable_hash(seed, "public", "closed form"), rank=rank
    )
    calibration = fit_calibration(pseudo, strength, seed=seed, rank=rank, sigma_switch=sigma_switch, mu=mu)
    return Public(closed_form, strength, drafts.error(seed), calibration, sigma_switch, rank), drafts


def fit_strength(pseudo: PseudoSources, priors: list[Gaussians], seed: int, rank: int) -> Strength:
    """Choose the prior's strengths, one after the other, that lose the fewest nats on images out of fold."""
    covariance = min(COVARIANCE_STRENGTHS, key=lambda s: _nats(pseudo, priors, Strength(1.0, s), seed, rank))
    mean = min(MEAN_STRENGTHS, key=lambda s: _nats(pseudo, priors, Strength(s, covariance), seed, rank))
    return Strength(mean, covariance)


def _nats(pseudo: PseudoSources, priors: list[Gaussians], strength: Strength, seed: int, rank: int) -> float:
    """Return the loss of small drafts out of fold, error / sigma^2 summed over log sigma (Guo et al. 2005, I-MMSE)."""
    sigma = torch.logspace(-1, 1, 5)
    total = 0.0
    for group in pseudo.groups():
        x_0 = pseudo.inside_fold(group, 0, MEASURED_ON)
        if len(x_0) == 0:
            continue
        noise = torch.randn(x_0.shape, generator=generator(seed, "public", "strength", group))
        for size in [size for size in pseudo.sizes() if size <= max(SIZES)] or pseudo.sizes():
            images = pseudo.outside_fold(group, 0, size)
            if len(images) == 0:
                continue
            draft = Gaussians.fit(images, seed=seed, public=priors[group], strength=strength, rank=rank)
            total += float((denoising_errors(draft, x_0, noise, sigma) / sigma.square()).sum())
    return total


def fit_calibration(
    pseudo: PseudoSources, strength: Strength, *, seed: int, rank: int, sigma_switch: float, mu: float | None = None
) -> Calibration:
    """Fit the temperature at each level below the switch, and the floor, on pseudo-sources' images out of fold.

    The temperature minimises the cross-entropy of the posterior of the pseudo-source; the floor is the level where
    that is lowest.
    """
    top = min(sigma_switch, HIGHEST_TEMPERED)
    levels = torch.logspace(math.log10(min(10 * SIGMA_MIN, top / 2)), math.log10(top), TEMPERED_LEVELS)
    forms = judged_forms(pseudo, strength, seed, rank, mu)
    images = [pseudo.inside_fold(group, 0, MEASURED_ON) for group in pseudo.groups()]
    x_0 = torch.cat(images)
    true = torch.cat([torch.full((len(some),), group) for group, some in enumerate(images)])
    noise = torch.randn(x_0.shape, generator=generator(seed, "public", "calibration"))
    losses = []
    for level in levels:
        x, sigma = x_0 + level * noise, level.expand(len(x_0))
        density = torch.stack([form.log_density(x, sigma) for form in forms])
        tempered = (density[None] / TEMPERATURES[:, None, None]).log_softmax(1)
        losses.append(-tempered[:, true, torch.arange(len(true))].mean(1))
    best = torch.stack(losses).min(dim=1)
    below = levels < sigma_switch  # at the switch evidence is not tempered
    return Calibration(levels, TEMPERATURES[best.indices], float(levels[below][best.values[below].argmin()]))


def judged_forms(
    pseudo: PseudoSources, strength: Strength, seed: int, rank: int, mu: float | None = None
) -> list[Gaussians]:
    """Return a closed form of every pseudo-source outside fold 0, shrunk as a source's is.

    The prior is one for all, of images outside the fold. Priors of the other groups, as the drafts have, would hold
    fold 0 of every group but its own, and so speak against the true one.
    """
    kept = pseudo.outside(0)
    prior = Gaussians.fit(kept, seed=stable_hash(seed, "public", "calibration", "prior"), rank=rank)
    fit, forms = draft_fit(prior, strength, rank, mu=mu), []
    for group in pseudo.groups():
        images = pseudo.outside_fold(group, 0, max(pseudo.sizes()))
        named = stable_hash(seed, "public", "calibration", group)
        forms.append(fit(images, named) if len(images) else prior)
    return forms
