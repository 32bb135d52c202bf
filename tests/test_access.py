"""Access rights. Oracles: sets worked out by hand, a model composed of the granted sources, a watch on opened files."""

import json
import os
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdm_lightning.access import Policy
from cdm_lightning.cli import main
from cdm_lightning.errors import BadInput
from cdm_lightning.store import Store
from tests.test_validate import copied

SOURCES = ("cat", "cow", "dog", "horse")
DAY = date(2027, 1, 31)
POLICY: dict[str, Any] = {
    "groups": {"pets": ["cat", "dog"], "farm": ["horse", "cow"], "most": ["cat", "dog", "cow"]},
    "roles": {"editor": {"allow": ["pets"], "deny": ["dog"]}, "trial": {"allow": "all", "expires": DAY}},
    "users": {
        "alice": {"roles": ["editor"], "allow": ["horse", "dog"]},
        "bob": {"allow": "all"},
        "carol": {"roles": ["trial"], "allow": ["cat"]},
        "dan": {"roles": ["trial"], "deny": ["farm"]},
        "eve": {"allow": ["most"], "deny": ["most"]},
        "fred": {"allow": ["pets"], "deny": ["cat"], "expires": DAY},
        "gil": {"allow": ["most"]},
        "hal": {},
    },
}


def read(contents: Any, place: Path, gone: tuple[str, ...] = ()) -> Policy:
    path = place / "policy.yaml"
    path.write_text(contents if isinstance(contents, str) else yaml.safe_dump(contents))
    return Policy.read(path, SOURCES, gone)


@pytest.mark.parametrize(
    ("user", "day", "granted"),
    [
        ("alice", DAY, ["cat", "horse"]),  # deny wins, also over what the user is allowed directly
        ("bob", DAY, ["cat", "cow", "dog", "horse"]),
        ("carol", DAY, ["cat", "cow", "dog", "horse"]),  # through the last day
        ("carol", DAY + timedelta(1), ["cat"]),
        ("dan", DAY, ["cat", "dog"]),
        ("fred", DAY, ["dog"]),
        ("gil", DAY, ["cat", "cow", "dog"]),
    ],
)
def test_what_is_granted(user: str, day: date, granted: list[str], tmp_path: Path) -> None:
    assert read(POLICY, tmp_path).granted(user, day) == granted


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("alise", "grants nothing to user 'alise'; did you mean 'alice'"),
        ("eve", "grants no source of this store to user 'eve'"),
        ("hal", "grants no source of this store to user 'hal'"),
        ("dan", "to user 'dan': what it granted expired on 2027-01-31"),
    ],
)
def test_nothing_is_granted_by_default(user: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        read(POLICY, tmp_path).granted(user, DAY + timedelta(1))


@pytest.mark.parametrize(("most", "granted"), [(8, ["cat", "cow"]), (3.5, ["cow"]), (80, ["cat", "cow", "dog"])])
def test_only_what_is_private_enough_is_granted(most: float, granted: list[str], tmp_path: Path) -> None:
    spent = {"cat": 8.0, "cow": 1.0, "dog": 8.5, "horse": None}
    policy = read(POLICY | {"max_epsilon": most}, tmp_path)
    assert policy.granted("bob", DAY, spent.get) == granted
    assert read(POLICY, tmp_path).granted("bob", DAY, spent.get) == ["cat", "cow", "dog", "horse"]


def test_what_is_not_granted_is_not_asked_for_its_privacy(tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(BadInput, match="max_epsilon is 8, and none of cat, horse is private with at most that"):
        read(POLICY | {"max_epsilon": 8}, tmp_path).granted("alice", DAY, lambda source: asked.append(source))
    assert sorted(asked) == ["cat", "horse"]


@pytest.mark.parametrize("value", [0, -1, "8", True, [8]])
def test_a_wrong_max_epsilon_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="max_epsilon is .*; expected a number above 0"):
        read(POLICY | {"max_epsilon": value}, tmp_path)


def test_a_day_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="policy.yaml is no policy: day"):
        read("users: {alice: {allow: all, expires: 2027-02-30}}", tmp_path)


def test_what_an_expired_entry_denies_stays_denied(tmp_path: Path) -> None:
    entry = {"users": {"u": {"allow": "all", "roles": ["old"]}}, "roles": {"old": {"deny": ["cat"], "expires": DAY}}}
    assert read(entry, tmp_path).granted("u", DAY + timedelta(1)) == ["cow", "dog", "horse"]


def test_a_forgotten_source_may_still_be_named_and_is_not_granted(tmp_path: Path) -> None:
    entry = {"groups": {"both": ["cat", "pig"]}, "users": {"u": {"allow": ["both", "pig"]}}}
    assert read(entry, tmp_path, ("pig",)).granted("u", DAY) == ["cat"]
    with pytest.raises(BadInput, match=r"groups.both: 'pig' is no source of the store and no group"):
        read(entry, tmp_path)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("users: [", "is no policy: "),
        ("- 1", "expected a mapping of names, got"),
        ("user: {}", "unknown key 'user', expected groups, roles, users, max_epsilon; did you mean 'users'"),
        ("users: {u: {alow: [cat]}}", "users.u: unknown key 'alow', .*did you mean 'allow'"),
        (
            "users: {u: {allow: [cart]}}",
            "users.u.allow: 'cart' is no source of the store and no group; did you mean 'cat'",
        ),
        ("groups: {a: [cat], b: [a]}", "groups.b: 'a' is no source of the store and no group"),
        ("users: {u: {allow: cat}}", "users.u.allow: expected a list of names, or all, got 'cat'"),
        ("users: {u: {allow: [1]}}", "users.u.allow: expected a list of names"),
        ("users: {u: {roles: [r]}}", "users.u.roles: there is no role 'r'"),
        ("roles: {r: {roles: [r]}}", "roles.r: unknown key 'roles'"),
        ("users: {u: {allow: [cat], expires: soon}}", "users.u.expires is 'soon'; expected a day such as 2027-01-31"),
        ("users: {u: {allow: [cat], expires: 2027-01-31 10:00:00}}", "expected a day such as"),
        ("groups: {cat: [dog]}", "groups.cat: 'cat' is the name of a source, or reserved"),
        ("groups: {all: [dog]}", "'all' is the name of a source, or reserved"),
        ("users: {u: {allow: [cat]}, u: {allow: all}}", "'u' is there twice"),
        ("users: !!python/object/apply:os.getcwd []", "is no policy: could not determine a constructor"),
    ],
)
def test_a_policy_is_checked_as_a_whole(contents: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        read(contents, tmp_path)


def test_entries_may_be_merged(tmp_path: Path) -> None:
    """By YAML's key <<, of which an own entry has precedence."""
    policy = read("users: {u: &shared {allow: [cat]}, v: {<<: *shared, deny: [cat]}, w: {<<: *shared}}", tmp_path)
    assert [policy.granted(user) for user in "uw"] == [["cat"], ["cat"]]
    with pytest.raises(BadInput, match="grants no source of this store to user 'v'"):
        policy.granted("v")


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none.yaml cannot be read"):
        Policy.read(tmp_path / "none.yaml", SOURCES)


# --- the commands


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("users:\n  ann: {allow: all, deny: [digit1]}\n  ben: {allow: [digit1]}\n")
    return path


def sample(store: Path, out: Path, *choice: str) -> int:
    return main(["sample", "--store", str(store), "--out", str(out), "--n", "2", "--steps", "3", *choice])


def test_a_user_gets_the_model_of_what_is_granted(store: Path, policy: Path, tmp_path: Path) -> None:
    """Weights and priors are those of a model of the granted sources alone, byte for byte."""
    assert sample(store, tmp_path / "user", "--user", "ann", "--policy", str(policy)) == 0
    assert sample(store, tmp_path / "list", "--sources", "[digit0, digit2]") == 0
    assert (tmp_path / "user" / "credits.json").read_bytes() == (tmp_path / "list" / "credits.json").read_bytes()
    assert (tmp_path / "user" / "grid.png").read_bytes() == (tmp_path / "list" / "grid.png").read_bytes()
    assert sample(store, tmp_path / "less", "--user", "ann", "--policy", str(policy), "--sources", "digit2") == 0
    assert json.loads((tmp_path / "less" / "credits.json").read_text())["sources"] == ["digit2"]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("--user", "ann", "--sources", "digit1"), "does not grant source 'digit1' to user 'ann'"),
        (("--user", "ann", "--sources", "[digit0, digit99]"), "does not grant source 'digit99' to user 'ann'"),
        (("--user", "zoe"), "grants nothing to user 'zoe'"),
        (("--sources", "all"), "--user and --policy belong together"),
    ],
)
def test_what_is_not_granted_is_refused(
    choice: tuple[str, ...], said: str, store: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(store, tmp_path / "out", *choice, "--policy", str(policy)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_against_reads_other_stores(
    store: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(store), "--out", str(tmp_path / "out"), "--against", f"x={store}"]
    assert main(["evaluate", *where, "--user", "ann", "--policy", str(policy)]) == 2
    assert "--against reads other stores" in capsys.readouterr().err


OPENED: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def watch() -> None:
    """Note every file that this process opens, for good: an audit hook cannot be taken away."""
    sys.addaudithook(lambda event, values: OPENED.append(os.fspath(values[0])) if _is_path(event, values) else None)


def _is_path(event: str, values: tuple[Any, ...]) -> bool:
    return event == "open" and isinstance(values[0], str | Path)


@pytest.mark.parametrize("command", ["sample", "validate", "evaluate", "report", "audit", "restore", "attribute"])
def test_what_is_not_granted_is_never_opened(
    command: str, store: Path, workplace: Path, policy: Path, tmp_path: Path
) -> None:
    mine = copied(store, tmp_path / "mine", ["digit0", "digit1", "digit2"])
    picture = tmp_path / "p"
    assert sample(mine, picture, "--sources", "[digit2]") == 0
    options = {
        "sample": ["--out", str(tmp_path / "out"), "--n", "1", "--steps", "2"],
        "validate": ["--extractor", "none", "--n", "2", "--steps", "2", "--root", str(workplace / "shards")],
        "evaluate": [
            *("--out", str(tmp_path / "out"), "--n", "4", "--steps", "2", "--root", str(workplace / "shards")),
            *("--strategies", "routed", "public"),
        ],
        "report": ["--out", str(tmp_path / "r.html"), "--n", "2", "--steps", "2", "--root", str(workplace / "shards")],
        "audit": ["--extractor", "none", "--n", "2", "--steps", "2", "--root", str(workplace / "shards")],
        "restore": ["--out", str(tmp_path / "out"), "--sigma", "0.5", "--steps", "2", str(picture / "00000.png")],
        "attribute": [
            *("--root", str(workplace / "shards"), "--method", "shapley", "--utility", "network", "--draws", "2"),
            *("--csv", str(tmp_path / "c.csv"), str(picture / "00000.png")),
        ],
    }
    OPENED.clear()
    user = ["--user", "ann", "--policy", str(policy)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdm_lightning.comparison.peak_memory", lambda *_: None)
        assert main([command, "--store", str(mine), *user, *options[command]]) == 0
    assert any("digit0" in path for path in OPENED)
    assert [path for path in OPENED if "digit1" in path] == []
    assert Store.open(mine).sources() == ["digit0", "digit1", "digit2"]
