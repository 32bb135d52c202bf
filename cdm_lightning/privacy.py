"""Which sources are private, and what the compartments of several private sources cost together."""

from collections.abc import Iterable
from dataclasses import dataclass

from cdm_lightning.card import Card
from cdm_lightning.errors import BadInput
from cdm_lightning.gaussian_mechanism import check_budget, composed, epsilon_of, mu_of


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of compartments: what may be known of one image of a source.

    Args:
        epsilon: of every release of a private source; without it no source is private.
        delta: of the same; at most 1 / n.
        secret_file: of at least 32 random bytes, behind the noise; by default fresh from the operating system.
        sources: the private ones; by default all that are fitted.

    Raises:
        BadInput: a value is out of range.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    secret_file: str | None = None
    sources: list[str] | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_budget(self.epsilon, self.delta)
        elif self.secret_file is not None or self.sources is not None:
            raise BadInput("privacy.epsilon is missing: without it no source is private; 8 is a common choice")

    @property
    def mu(self) -> float | None:
        """Return the mu of one release (see `gaussian_mechanism`); None if no source is private."""
        return None if self.epsilon is None else mu_of(self.epsilon, self.delta)

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


def together(cards: Iterable[Card]) -> Together | None:
    """Return what the private ones of some compartments cost together; None if none is private.

    Sources that share no image compose in parallel: an image changes one compartment only (McSherry 2009, doi
    10.1145/1559845.1559850, Theorem 4). The releases about an image that several hold add up.
    """
    private = [(card.epsilon, card.delta) for card in cards if card.epsilon is not None and card.delta is not None]
    if not private:
        return None
    delta = max(delta for _, delta in private)
    all_of_them = epsilon_of(composed(mu_of(*budget) for budget in private), delta)
    return Together(max(epsilon for epsilon, _ in private), delta, all_of_them)
