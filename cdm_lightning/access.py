"""Access rights: a policy says which user may use which sources; what it does not grant is never opened.

    groups:
      animals: [cat, dog]
    roles:
      editor: {allow: [animals], deny: [dog]}
    users:
      alice: {roles: [editor], allow: [horse], expires: 2027-01-31}
      bob: {allow: all}
    max_epsilon: 8

A user has the sources that the user or one of the user's roles allows and none of them denies. Nothing is granted by
default. An entry that has expired allows nothing; what it denies stays denied. With `max_epsilon`, nobody has a source
without differential privacy, or one that has spent more. A policy guards the commands, not the
disk: who can read the store's files needs no command.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.parser import StrictLoader

ALL = "all"
PARTS = ("groups", "roles", "users", "max_epsilon")
RIGHTS = ("allow", "deny", "expires")


@dataclass(frozen=True)
class Rights:
    """What a user or a role allows and denies, as sources.

    Attributes:
        allow: sources.
        deny: sources; stronger than any `allow`, and never expires.
        expires: the last day (UTC) on which it allows anything; None is for good.
        roles: of a user.
    """

    allow: frozenset[str]
    deny: frozenset[str]
    expires: date | None
    roles: tuple[str, ...] = ()

    def allowed(self, today: date) -> frozenset[str]:
        """Return the sources that it allows on a day."""
        return self.allow if self.expires is None or today <= self.expires else frozenset()


@dataclass(frozen=True)
class Policy:
    """A policy that was checked against the sources of a store; `max_epsilon` None asks for no privacy."""

    path: Path
    users: Mapping[str, Rights]
    roles: Mapping[str, Rights]
    max_epsilon: float | None = None

    @classmethod
    def read(cls, path: Path, sources: Iterable[str], gone: Iterable[str] = ()) -> "Policy":
        """Read a policy and check all of it.

        Args:
            path: a YAML file.
            sources: those of the store.
            gone: sources that were forgotten; a policy may still name them, and they grant nothing.

        Raises:
            BadInput: the file cannot be read, has an unknown key, or names a source, group or role that is not there.
        """
        contents = _mapping(_loaded(path), str(path), PARTS)
        sources, known = frozenset(sources), frozenset(sources) | frozenset(gone)
        everything = {ALL: sources}
        groups = dict(everything)
        for name, members in _mapping(contents.get("groups", {}), f"{path}, groups").items():
            where = f"{path}, groups.{name}"
            if name in known or name == ALL:
                raise BadInput(f"{where}: '{name}' is the name of a source, or reserved; give the group another one")
            groups[name] = _sources(members, known, everything, where) & sources
        rights = {part: _mapping(contents.get(part, {}), f"{path}, {part}") for part in ("roles", "users")}
        roles = {
            name: _rights(entry, known, groups, f"{path}, roles.{name}", None)
            for name, entry in rights["roles"].items()
        }
        users = {
            name: _rights(entry, known, groups, f"{path}, users.{name}", tuple(roles))
            for name, entry in rights["users"].items()
        }
        return cls(path, users, roles, _max_epsilon(contents.get("max_epsilon"), path))

    def granted(
        self, user: str, today: date | None = None, spent: Callable[[str], float | None] = lambda source: None
    ) -> list[str]:
        """Return the sources that a user may use on a day, by default today (UTC), sorted.

        Args:
            user: a name in the policy.
            today: the day.
            spent: the epsilon of a source, None without differential privacy; asked of what is granted otherwise, and
                only with `max_epsilon`.

        Raises:
            BadInput: the policy does not know the user, or grants nothing.
        """
        if user not in self.users:
            raise BadInput(f"{self.path} grants nothing to user '{user}'{did_you_mean(user, self.users)}")
        today = today or datetime.now(UTC).date()
        rights = [self.users[user], *(self.roles[role] for role in self.users[user].roles)]
        allowed = frozenset[str]().union(*(one.allowed(today) for one in rights))
        left = allowed - frozenset[str]().union(*(one.deny for one in rights))
        if not left:
            expired = [str(one.expires) for one in rights if one.expires is not None and today > one.expires]
            why = f": what it granted expired on {max(expired)}" if expired else ""
            raise BadInput(f"{self.path} grants no source of this store to user '{user}'{why}")
        if self.max_epsilon is None:
            return sorted(left)
        epsilons = {source: spent(source) for source in left}
        kept = sorted(source for source, one in epsilons.items() if one is not None and one <= self.max_epsilon)
        if not kept:
            raise BadInput(
                f"{self.path} grants no source to user '{user}': max_epsilon is {self.max_epsilon:g}, and none of "
                f"{', '.join(sorted(left))} is private with at most that"
            )
        return kept


def _loaded(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506 it is a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--policy {path} cannot be read ({error}): expected a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # a day that there is not, such as 2027-02-30, is a ValueError
        raise BadInput(f"--policy {path} is no policy: {' '.join(str(error).split())}") from error


def _mapping(value: Any, where: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return a mapping of texts to anything, with no key but these."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise BadInput(f"{where}: expected a mapping of names, got {value!r}")
    for key in value:
        if keys is not None and key not in keys:
            raise BadInput(f"{where}: unknown key '{key}', expected {', '.join(keys)}{did_you_mean(key, keys)}")
    return value


def _max_epsilon(value: Any, path: Path) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise BadInput(f"{path}, max_epsilon is {value!r}; expected a number above 0, such as 8")
    return None if value is None else float(value)


def _rights(
    entry: Any, known: frozenset[str], groups: Mapping[str, frozenset[str]], where: str, roles: tuple[str, ...] | None
) -> Rights:
    """Return the rights in one entry; `roles` are those that a user may name, None for a role itself."""
    values = _mapping(entry, where, RIGHTS if roles is None else (*RIGHTS, "roles"))
    expires, own = values.get("expires"), _names(values.get("roles", []), f"{where}.roles")
    if isinstance(expires, datetime) or not (expires is None or isinstance(expires, date)):
        raise BadInput(f"{where}.expires is {expires!r}; expected a day such as 2027-01-31")
    for role in own:
        if role not in (roles or ()):
            raise BadInput(f"{where}.roles: there is no role '{role}'{did_you_mean(role, roles or ())}")
    allow, deny = (_sources(values.get(key, []), known, groups, f"{where}.{key}") for key in ("allow", "deny"))
    return Rights(allow & groups[ALL], deny & groups[ALL], expires, tuple(own))


def _sources(value: Any, known: frozenset[str], groups: Mapping[str, frozenset[str]], where: str) -> frozenset[str]:
    """Return the sources that a list of sources and groups stands for."""
    found: set[str] = set()
    for name in _names(value, where):
        if name not in known and name not in groups:
            raise BadInput(
                f"{where}: '{name}' is no source of the store and no group{did_you_mean(name, [*known, *groups])}"
            )
        found |= groups.get(name, frozenset({name}))
    return frozenset(found)


def _names(value: Any, where: str) -> list[str]:
    names = [value] if value == ALL else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{where}: expected a list of names, or all, got {value!r}")
    return names
