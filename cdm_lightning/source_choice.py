"""Which sources a command line chooses: `--sources`, or what a policy grants to `--user`."""

from pathlib import Path
from typing import Any

from cdm_lightning.access import Policy
from cdm_lightning.errors import BadInput
from cdm_lightning.parser import Parser
from cdm_lightning.releases import cost_of
from cdm_lightning.store import Store, names_of


def add_source_options(parser: Parser) -> None:
    """Add `--sources`, `--user` and `--policy`."""
    parser.add_argument(
        "--sources", type=str | list[str] | None, default=None, help="all, or a list: '[cat, dog]'; or --user"
    )
    parser.add_argument("--user", type=str, default=None, help="for whom: what --policy grants, or less")
    parser.add_argument("--policy", type=str | None, default=None, help="YAML file of access rights")


def check_against(config: Any) -> None:
    """Raise BadInput if `--against` names other stores where a policy says which sources may be used."""
    if config.user is not None and config.against:
        raise BadInput("--against reads other stores, of which --policy says nothing: leave it out, or --user")


def chosen_sources(config: Any) -> list[str]:
    """Return the sources that a parsed command line chooses of its store, sorted: their order means nothing.

    Draws of a source, and what is kept of a row of `evaluate`, go by it.

    Raises:
        BadInput: none is chosen, one does not exist, or the policy does not grant it.
    """
    if (config.user is None) != (config.policy is None):
        raise BadInput("--user and --policy belong together: name both, or --sources alone")
    if config.user is None and config.sources is None:
        raise BadInput("no source chosen: say --sources all, --sources '[cat, dog]', or --user NAME --policy FILE")
    store = Store.open(Path(config.store))
    if config.user is None:
        return sorted(store.choose(config.sources))
    policy = Policy.read(Path(config.policy), store.sources(), store.gone())

    def spent(source: str) -> float | None:
        cost = cost_of(store.path, store.read_card(source))
        return None if cost is None else cost.epsilon

    granted = policy.granted(config.user, spent=spent)
    if config.sources in (None, "all"):
        return granted
    for source in names_of(config.sources):
        if source not in granted:  # whether there is such a source is nothing for this user to know
            raise BadInput(f"{config.policy} does not grant source '{source}' to user '{config.user}'")
    return sorted(store.choose(config.sources))
