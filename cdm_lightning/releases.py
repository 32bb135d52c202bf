"""What each private source of a store has released so far. It outlives the compartment: what is out stays out.

STORE/releases.jsonl has a line per release. It is written before the compartment is, so an interrupted fit may count
one too many, never one too few.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cdm_lightning.card import Card
from cdm_lightning.errors import StoreError
from cdm_lightning.gaussian_mechanism import composed, epsilon_of
from cdm_lightning.ledger import LEDGER_LOCK, append_line, locked, whole_lines

RELEASES = "releases.jsonl"


@dataclass(frozen=True)
class Spent:
    """What a source has released so far.

    Attributes:
        mus: of every release, oldest first (see `gaussian_mechanism`); of a closed form and its prompt together.
        slack: of all releases together (see `subsampled_gaussian`).
    """

    mus: tuple[float, ...]
    slack: float

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of all together at `delta`; infinite if the slack leaves nothing of it."""
        return epsilon_of(composed(self.mus), delta - self.slack) if delta > self.slack else math.inf


@dataclass(frozen=True)
class Cost:
    """What all that a private source has released tells of one image of it.

    Attributes:
        epsilon: of all releases together, at `delta`; infinite if the slack leaves nothing of it.
        delta: the chance that epsilon does not hold.
        slack: the part of delta that the training of prompts has set aside (see `subsampled_gaussian`).
    """

    epsilon: float
    delta: float
    slack: float


def cost_of(store: Path, card: Card) -> Cost | None:
    """Return what a source of a store has cost so far, by its card and by all that the store has noted.

    A card from elsewhere (`store add`) does not count what the store had of the source before. None without privacy.
    """
    if card.epsilon is None or card.delta is None:
        return None
    spent = released(store, card.source)
    return Cost(max(card.epsilon, spent.epsilon(card.delta)), card.delta, max(card.slack, spent.slack))


def note_release(store: Path, source: str, mu: float, slack: float = 0.0) -> None:
    """Add a release of a source to those of a store."""
    line = {"source": source, "mu": mu, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if slack:
        line["slack"] = slack
    with locked(store / LEDGER_LOCK):
        append_line(store / RELEASES, json.dumps(line, sort_keys=True))


def released(store: Path, source: str) -> Spent:
    """Return what a source of a store has released.

    Raises:
        StoreError: a line is no release; names it.
    """
    mus, slacks = [], []
    for number, line in enumerate(whole_lines(store / RELEASES), start=1):
        try:
            entry = json.loads(line)
            name, mu, slack = str(entry["source"]), float(entry["mu"]), float(entry.get("slack", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{store / RELEASES}, line {number}: this is no release; compare it with a copy"
            ) from error
        if not (math.isfinite(mu) and mu > 0 and 0 <= slack < 1):
            raise StoreError(
                f"{store / RELEASES}, line {number}: its mu is {mu}, its slack {slack}; compare it with a copy"
            )
        if name == source:
            mus.append(mu)
            slacks.append(slack)
    return Spent(tuple(mus), math.fsum(slacks))
