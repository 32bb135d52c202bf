"""Which sources are private, and what the compartments of several private sources cost together."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cdm_lightning.errors import BadInput
from cdm_lightning.gaussian_mechanism import check_budget, composed, epsilon_of, mu_of
from cdm_lightning.releases import Cost

SLACK_SHARE = 0.02  # of delta, if a prompt is trained; see `subsampled_gaussian`


@dataclass(frozen=True)
class Shares:
    """What one fit of a private source may spend, in the terms of `gaussian_mechanism` and `subsampled_gaussian`.

    Attributes:
        form: mu of the closed form.
        prompt: mu that bounds the training of the prompt; 0 without one.
        slack: of the prompt; the whole is private at delta minus this.
    """

    form: float
    prompt: float
    slack: float

    @property
    def mu(self) -> float:
        """Return the mu of both together."""
        return composed((self.form, self.prompt))


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of compartments: what may be known of one image of a source.

    Args:
        epsilon: of every release of a private source; without it no source is private.
        delta: of the same; at most 1 / n.
        secret_file: of at least 32 random bytes, behind the noise; by default fresh from the operating system.
        sources: the private ones; by default all that are fitted.
        clipping_norm: what the gradient of one image is cut to in the training of a private prompt; by default the
            median that images drawn from the released closed form have at the start.
        draws: noise levels of each image in a step of it, whose gradients are averaged before they are cut.
        prompt_share: of the budget (of mu^2) that a private prompt takes; the rest is for the closed form.

    Raises:
        BadInput: a value is out of range.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    secret_file: str | None = None
    sources: list[str] | None = None
    clipping_norm: float | None = None
    draws: int = 4
    prompt_share: float = 0.05

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_budget(self.epsilon, self.delta)
        elif self.secret_file is not None or self.sources is not None:
            raise BadInput("privacy.epsilon is missing: without it no source is private; 8 is a common choice")
        if self.clipping_norm is not None and not 0 < self.clipping_norm < math.inf:
            raise BadInput(f"privacy.clipping_norm is {self.clipping_norm}; expected a number above 0")
        if self.draws < 1:
            raise BadInput(f"privacy.draws is {self.draws}; expected at least 1")
        if not 0 < self.prompt_share < 1:
            raise BadInput(f"privacy.prompt_share is {self.prompt_share}; expected a number between 0 and 1")

    def shares(self, prompt: bool) -> Shares | None:
        """Return what one fit may spend, with or without a trained prompt; None if no source is private.

        Together it is (epsilon, delta): mu is that of (epsilon, delta - slack), and the squares of mu add up.
        """
        if self.epsilon is None:
            return None
        if not prompt:
            return Shares(mu_of(self.epsilon, self.delta), 0.0, 0.0)
        slack = SLACK_SHARE * self.delta
        mu = mu_of(self.epsilon, self.delta - slack)
        return Shares(mu * math.sqrt(1 - self.prompt_share), mu * math.sqrt(self.prompt_share), slack)

    def covers(self, source: str) -> bool:
        """Return whether a source is private."""
        return self.epsilon is not None and (self.sources is None or source in self.sources)


@dataclass(frozen=True)
class Together:
    """What several private compartments cost one image.

    Attributes:
        epsilon: of an image that one source holds: the largest of them.
        delta: the largest of them.
        epsilon_of_all: of an image that all of these sources hold, at the same delta.
    """

    epsilon: float
    delta: float
    epsilon_of_all: float


def together(costs: Iterable[Cost | None]) -> Together | None:
    """Return what compartments cost together, of which those without privacy are None; None if none is private.

    Sources that share no image compose in parallel: an image changes one compartment only (McSherry 2009, doi
    10.1145/1559845.1559850, Theorem 4). The releases about an image that several hold add up.
    """
    private = [cost for cost in costs if cost is not None]
    if not private:
        return None
    epsilon, delta = (max(getattr(cost, name) for cost in private) for name in ("epsilon", "delta"))
    left = delta - sum(cost.slack for cost in private)
    if left <= 0 or epsilon == math.inf:
        return Together(epsilon, delta, math.inf)
    mu = composed(mu_of(cost.epsilon, cost.delta - cost.slack) for cost in private)
    return Together(epsilon, delta, epsilon_of(mu, left))
