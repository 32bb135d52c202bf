"""The command line of `verify-forgotten`."""

import tempfile
from pathlib import Path
from typing import Any

from cdm_lightning.errors import BadInput
from cdm_lightning.fit_record import fit_record
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.store import Store
from cdm_lightning.verify_forgotten import Check, absence, comparison, fitted_again
from datamodules.manifest import MANIFEST


def verify_forgotten_parser() -> Parser:
    """Return the parser of `verify-forgotten`."""
    parser = new_parser("verify-forgotten", "Check that a source is gone from a store, as if it had never been there.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    parser.add_argument("--source", type=str, required=True, help="the source that should be gone")
    parser.add_argument("--against", type=str | None, default=None, help="a store that never had it, to compare with")
    parser.add_argument("--retrain", action="store_true", help="fit every remaining source again, and compare")
    parser.add_argument("--root", type=str | None, default=None, help="folder of the shards for --retrain")
    parser.add_argument("--json", type=str | None, default=None, help="also write what was checked to this file")
    return parser


def verify_forgotten(config: Any) -> list[Check]:
    """Return everything that a parsed command line asks to check.

    Raises:
        BadInput: a store, the source or the shards cannot be used.
    """
    store = Store.open(Path(config.store))
    checks = list(absence(store, config.source))
    if config.against is not None:
        checks += comparison(store, Store.open(Path(config.against)), config.source)
    if config.retrain:
        roots = {source: config.root or fit_record(store, source).root for source in store.sources()}
        if None in roots.values():
            raise BadInput("--retrain needs the shards of the remaining sources: name their folder with --root")
        for source, root in roots.items():
            if not (Path(str(root)) / source / MANIFEST).is_file():
                raise BadInput(
                    f"--retrain finds no shards of source '{source}' in '{root}': name their folder with --root"
                )
        with tempfile.TemporaryDirectory() as place:
            again = fitted_again(
                store, Path(place) / "again", lambda file, into, source: _fit(file, into, source, str(roots[source]))
            )
            checks += [check for check in comparison(store, again, config.source) if ": " in check.said]
    return checks


def _fit(config_file: Path, into: Store, source: str, root: str) -> None:
    """Fit one source as its saved configuration says, without logs and measurements."""
    from cdm_lightning.refit import QUIET, refit

    if not config_file.is_file():
        raise BadInput(f"{config_file} is missing, so nobody knows how '{source}' was fitted: use --against instead")
    refit(config_file, into.path, source, root, *QUIET)


def said(checks: list[Check], source: str) -> str:
    """Return the checks as text.

    Raises:
        BadInput: one does not hold.
    """
    lines = "\n".join(f"  {'ok' if check.holds else 'NO'}  {check.said}" for check in checks)
    if not all(check.holds for check in checks):
        raise BadInput(f"it is not verified that source '{source}' is gone:\n{lines}")
    return f"source '{source}' is gone:\n{lines}"
