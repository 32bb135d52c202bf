"""The ways to credit an image to sources: posteriors, and what each source adds to coalitions.

`weights`, `gaussians` and `network` are posteriors of the source, so they are shares: not negative, of sum 1.
`loo` and `shapley` are nats of log density, see `cdm_lightning.coalitions`; they can be negative, as a source that
does not explain the image takes prior mass from those that do. What `loo` gives has no sum that means anything; what
`shapley` gives has the sum v(all) - v(nobody), so it makes shares where none is negative.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdm_lightning.attribution import credit_noise, credits_by_draw
from cdm_lightning.coalitions import DensityGame, ErrorGame
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser, mixture_weights
from cdm_lightning.contenders import backbone_alone
from cdm_lightning.denoiser import SIGMA_MAX, SIGMA_MIN
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import NetworkEvidence
from cdm_lightning.intervals import NORMAL
from cdm_lightning.sampling import karras_sigmas
from cdm_lightning.seeding import generator, stable_hash
from cdm_lightning.shapley import MOST_PLAYERS, Game, leave_one_out, sampled_shapley_values, shapley_values

Method = Literal["weights", "gaussians", "network", "loo", "shapley"]
Utility = Literal["gaussians", "network"]
OF_COALITIONS = ("loo", "shapley")


@dataclass(frozen=True)
class CreditSettings:
    """How images are credited.

    Args:
        method: `weights`: the weights along a noising path. `gaussians`: the posterior under the closed forms, as in
            `sample`. `network`: that of the networks' denoising error. `loo`: what the model loses in log density
            without a source. `shapley`: what a source adds to a coalition, on average over all orders.
        utility: what a coalition is worth, for `loo` and `shapley`: log density by the closed forms (`gaussians`), or
            by the denoising error of the networks (`network`).
        draws: noise draws, the same for all images; at least 2.
        permutations: random permutations for `shapley` of more than 12 sources, an even number of at least 4.
        steps: noise levels of `weights`, those of the sampler; at least 2.
        seed: of the draws.
    """

    method: Method = "gaussians"
    utility: Utility = "gaussians"
    draws: int = 16
    permutations: int = 2000
    steps: int = 18
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("draws", 2), ("permutations", 4), ("steps", 2)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name} is {getattr(self, name)}; expected at least {least}")
        if self.permutations % 2:
            raise BadInput(
                f"--permutations is {self.permutations}; expected an even number, as each goes with its reverse"
            )
        if self.utility != "gaussians" and self.method not in OF_COALITIONS:
            raise BadInput(
                f"--utility {self.utility} is of the methods {' and '.join(OF_COALITIONS)}, not {self.method}"
            )


@dataclass(frozen=True)
class Credit:
    """What one method says of some images.

    Attributes:
        value: [source, image]: shares, or nats.
        standard_error: [source, image], of the noise draws and, where they are sampled, of the permutations.
        permutation_error: [source, image], the latter alone; None where nothing was sampled.
        shares: [source, image]: the credits, not negative and of sum 1; NaN where nats make none.
        positive: [source, image]: what is above zero, divided by its sum; NaN if nothing is.
        trajectory: (sigma, mean weights [source, image]) along the path of `weights`.
    """

    value: Tensor
    standard_error: Tensor
    permutation_error: Tensor | None
    shares: Tensor
    positive: Tensor
    trajectory: list[tuple[float, Tensor]]

    def interval(self) -> tuple[Tensor, Tensor]:
        """Return the ends of the interval of 95 % of `value`: 1.96 standard errors to both sides."""
        return self.value - NORMAL * self.standard_error, self.value + NORMAL * self.standard_error


def credit(compartments: Compartments, x_0: Tensor, settings: CreditSettings) -> Credit:
    """Credit images to the sources that were opened.

    Args:
        compartments: all of the sources; they count their network evaluations.
        x_0: [image, channel, height, width] in [-1, 1], on the device of the compartments.
        settings: how.
    """
    if settings.method in OF_COALITIONS:
        return _of_game(compartments, x_0, settings)
    composed, floor = compartments.composed("posterior"), compartments.public.calibration.floor
    noise = credit_noise(x_0, settings.draws, settings.seed)
    if settings.method == "network":
        log_density = network_log_density(compartments, x_0, floor, noise, settings.seed)
        return _posterior(log_density, composed.prior)
    if settings.method == "gaussians":
        return _of_shares(credits_by_draw(composed, x_0, floor, noise), [])
    return _along_a_path(composed, x_0, settings.steps, noise)


def _along_a_path(composed: ComposedDenoiser, x_0: Tensor, steps: int, noise: list[Tensor]) -> Credit:
    """Return the weights at the noise levels of a sampler, with the noise of each draw scaled to the level."""
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX, through=composed.sigma_switch)[:-1].tolist()
    weights = [credits_by_draw(composed, x_0, sigma, noise) for sigma in sigmas]
    course = [(round(sigma, 6), weight.mean(0)) for sigma, weight in zip(sigmas, weights, strict=True)]
    return _of_shares(torch.stack(weights).mean(0), course)


def network_log_density(
    compartments: Compartments, x_0: Tensor, sigma: float, noise: list[Tensor], seed: int
) -> Tensor:
    """Return the networks' log p_i(x_0 + sigma * noise; sigma) [draw, source, image], see `NetworkEvidence`."""
    rows, level = [], x_0.new_full((len(x_0),), sigma)
    for draw, one in enumerate(noise):
        rows.append(
            torch.stack(
                [
                    NetworkEvidence(
                        compartments[source], form, compartments.sigma_switch, seed=stable_hash(seed, draw)
                    ).log_density(x_0 + sigma * one, level)
                    for source, form in compartments.closed_forms.items()
                ]
            )
        )
    return torch.stack(rows)


def _posterior(log_density: Tensor, prior: Tensor) -> Credit:
    """Return the posterior of the mean log density over the draws [draw, source, image]; jackknife over the draws."""
    n, log_prior = len(log_density), prior.log().to(log_density)
    without = (log_density.sum(0) - log_density) / (n - 1)
    left_out = torch.stack([mixture_weights(one, log_prior) for one in without])
    value = mixture_weights(log_density.mean(0), log_prior)
    error = ((n - 1) / n * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    return Credit(value, error, None, value, value, [])


def _of_shares(by_draw: Tensor, trajectory: list[tuple[float, Tensor]]) -> Credit:
    value = by_draw.mean(0)
    return Credit(value, _error_of_mean(by_draw), None, value, value, trajectory)


def _of_game(compartments: Compartments, x_0: Tensor, settings: CreditSettings) -> Credit:
    """Return what each source adds, with the game of every draw for itself: values are linear in the game."""
    game, players = game_of(compartments, x_0, settings), len(compartments)
    if settings.method == "loo":
        by_draw, sampled = leave_one_out(game, players), None
    elif players <= MOST_PLAYERS:
        by_draw, sampled = shapley_values(game, players), None
    else:
        by_draw, sampled = _sampled(game, players, settings)
    value, error = by_draw.mean(1), _error_of_mean(by_draw.transpose(0, 1))
    if sampled is not None:
        error = torch.hypot(error, sampled)
    whole = torch.full_like(value, torch.nan) if settings.method == "loo" else shares(value)
    return Credit(value, error, sampled, whole, positive_shares(value), [])


def _sampled(game: Game, players: int, settings: CreditSettings) -> tuple[Tensor, Tensor]:
    """Return values [source, draw, image] from permutations, and the error of the permutations in their mean."""

    def with_mean(members: Tensor) -> Tensor:
        value = game(members)
        return torch.cat([value, value.mean(1, keepdim=True)], 1)

    draw = generator(settings.seed, "permutations")
    found = sampled_shapley_values(with_mean, players, settings.permutations // 2, draw)
    return found.value[:, :-1], found.standard_error[:, -1]


def game_of(compartments: Compartments, x_0: Tensor, settings: CreditSettings) -> DensityGame | ErrorGame:
    """Return the game of each image under each draw: values [coalition, draw, image] in nats."""
    floor = compartments.public.calibration.floor
    if settings.utility == "gaussians":
        return DensityGame.of(compartments, x_0, floor, credit_noise(x_0, settings.draws, settings.seed))
    public = backbone_alone(compartments, None, str(x_0.device))
    game = ErrorGame.of(compartments, public, x_0, floor, settings.draws, settings.seed)
    compartments.evaluations += public.evaluations
    return game


def shares(value: Tensor) -> Tensor:
    """Return Shapley values [source, image] as parts of v(all) - v(nobody), which is their sum; NaN if one is negative.

    Whoever divides by a sum of mixed signs can get shares of any size, and whoever cuts what is negative off shares out
    another sum: so there are none then.
    """
    total = value.sum(0)
    return torch.where((value >= 0).all(0) & (total > 0), value / total, torch.nan)


def positive_shares(value: Tensor) -> Tensor:
    """Return what of the nats [source, image] is above zero, divided by its sum; NaN if nothing is."""
    above = value.clamp_min(0)
    return above / above.sum(0)


def _error_of_mean(by_draw: Tensor) -> Tensor:
    """Return the standard error of the mean over draws [draw, ...]."""
    return by_draw.std(0) / math.sqrt(len(by_draw))
