"""What the runs of a store say of its fit: where the images lie, and how the composed model is validated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from cdm_lightning.forgetting import pending_of
from cdm_lightning.store import CONFIG, UNFINISHED, Store
from cdm_lightning.strategy import Strategy

RECORDS = ("composed", "backbone")  # folders of runs/ that hold a configuration; the newest validation comes first


@dataclass(frozen=True)
class FitRecord:
    """What is recorded of a fit; None is not recorded.

    Attributes:
        root: folder of the shards.
        exclude: file of the keys that are not used.
        strategy: how the composed model is validated.
    """

    root: str | None = None
    exclude: str | None = None
    strategy: Strategy | None = None


def fit_record(store: Store, source: str | None = None) -> FitRecord:
    """Return what the first configuration in the store's runs that names a folder of shards says; nothing, if none.

    That of a source's own fit comes first, where one is named: of a fit that is to be done again before all.
    """
    own = [] if source is None else [pending_of(store, source)]
    own += [store.runs / "sources" / source / name for name in (CONFIG, UNFINISHED) if source]
    for file in (*own, *(store.runs / folder / CONFIG for folder in RECORDS)):
        config = _mapping(file)
        data, model = _inner(config, "data"), _inner(config, "model")
        if root := _text(data.get("root")):
            known = {name: name for name in get_args(Strategy)}
            return FitRecord(root, _text(data.get("exclude")), known.get(_text(model.get("strategy"))))
    return FitRecord()


def _mapping(path: Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file; an empty one if there is none."""
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError):
        return {}
    return contents if isinstance(contents, dict) else {}


def _inner(mapping: dict[Any, Any], key: str) -> dict[Any, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
