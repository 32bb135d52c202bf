"""`forget --sample`: single images leave; only the compartments that have learned them are fitted again.

What was forgotten is listed in the store as keyed hashes, so no later fit uses it. A compartment that has learned an
image is taken away with all its traces before it is fitted again: until then the store serves the other sources. With
`--purge` the shards are then rewritten without the image.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdm_lightning.claim import claimed
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.fit_record import fit_record
from cdm_lightning.forgetting import PENDING, forget_source, pending_of, trace
from cdm_lightning.private_runs import learned_data, learned_others, mark_private
from cdm_lightning.store import CONFIG, EXCLUSIONS, Store
from cdm_lightning.tensor_files import remove_unfinished, write_atomic
from datamodules.exclusions import add_forgotten, forgotten_keys, read_keys
from datamodules.manifest import MANIFEST, Manifest, read_manifest
from datamodules.names import PUBLIC
from datamodules.publish import mend
from datamodules.purge import check_purgeable, planned_purge, purge

Keys = Mapping[str, frozenset[str]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Where the samples are that shall be forgotten.

    Attributes:
        keys: by source, with all samples of the same content in that source.
        elsewhere: samples of the same content that other sources hold, by source.
        public: number of images of the same content in `public`.
    """

    keys: Keys
    elsewhere: Keys
    public: int


def forget_samples(config: Any) -> dict[str, Any]:
    """Forget the samples that a parsed command line names, and return the receipt.

    Raises:
        BadInput: a sample, the shards or the store cannot be used.
    """
    store = Store.open(Path(config.store))
    root = config.root or _root(store, config.source)
    wanted = frozenset(_named(config.sample)) | (read_keys(Path(config.list), "--list") if config.list else frozenset())
    if not wanted:
        raise BadInput("no sample is named: --sample KEY, or --list FILE with keys in it, one a line")
    manifests = _manifests(Path(root))
    purged = _purged(store, manifests, wanted, config.source)
    left = wanted - frozenset().union(*purged.values())
    found = find(manifests, left, config.source, config.everywhere)
    if config.purge:
        check_purgeable(Path(root), found.keys.keys())
    done: dict[str, Any] = {}
    for source in found.keys:
        _check_refit(store, root, source)
    if not config.dry_run:
        done = {source: _forget(store, root, source, keys) for source, keys in found.keys.items()}
    rewritten = (planned_purge if config.dry_run else purge)(Path(root), found.keys) if config.purge else None
    return {
        "store": str(store.path.absolute()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry_run": config.dry_run,
        "samples": {source: sorted(keys) for source, keys in found.keys.items()},
        "also_held_by": {source: sorted(keys) for source, keys in found.elsewhere.items()},
        "in_public": found.public,
        "purged_before": {source: sorted(keys) for source, keys in purged.items()},
        "root": root,
        "shards": [str(Path(root) / source) for source in found.keys],
        "purge": None if rewritten is None else asdict(rewritten),
        "sources": done,
    }


def _root(store: Store, source: str | None) -> str:
    """Return the folder of the shards that a source was fitted from; without one that of all sources.

    Raises:
        BadInput: it is not known, or there are several.
    """
    pending = [path.name.removesuffix(PENDING) for path in (store.path / EXCLUSIONS).glob(f"*{PENDING}")]
    asked = [source] if source else [*store.sources(), *pending]
    known = {os.path.realpath(root): root for one in asked if (root := fit_record(store, one).root)}
    if len(known) > 1:
        raise BadInput(
            f"the sources were fitted from shards in {' and '.join(sorted(known.values()))}: name one with --source, "
            "or the folder that holds the samples with --root"
        )
    root = next(iter(known.values()), None) or fit_record(store).root
    if root is None:
        raise BadInput("the shards that hold the samples are not known: name their folder with --root")
    return root


def _named(samples: Any) -> list[str]:
    """Return the keys that `--sample`, or `sample` in a configuration, names.

    Raises:
        BadInput: one is no text.
    """
    keys = [samples] if isinstance(samples, str) else samples or []
    for key in keys:
        if not isinstance(key, str):
            raise BadInput(f"sample {key!r} is no text: write it in quotes")
    return list(keys)


def find(manifests: Mapping[str, Manifest], wanted: frozenset[str], source: str | None, everywhere: bool) -> Found:
    """Return which sources hold samples, by key and by content.

    Args:
        manifests: of all sources, and of `public`.
        wanted: keys.
        source: only look for the keys in this one.
        everywhere: forget the same content in other sources too.

    Raises:
        BadInput: a key is in no source.
    """
    sources = {name: manifest for name, manifest in manifests.items() if name != PUBLIC}
    asked = {name: one for name, one in sources.items() if source in (None, name)}
    by_key = {name: wanted & one.samples.keys() for name, one in asked.items()}
    for key in sorted(wanted - frozenset().union(*by_key.values())):
        known = [key for one in asked.values() for key in one.samples]
        where = f"source '{source}'" if source else f"any source of {', '.join(sorted(asked))}"
        raise BadInput(f"sample '{key}' is not in {where}{did_you_mean(key, known)}")
    contents = frozenset(asked[name].samples[key].sha256 for name, keys in by_key.items() for key in keys)
    by_content = {name: _of_content(one, contents) for name, one in sources.items()}
    held = {name: keys for name, keys in by_content.items() if keys}
    chosen = {name: keys for name, keys in held.items() if everywhere or by_key.get(name)}
    elsewhere = {name: keys for name, keys in held.items() if name not in chosen}
    public = manifests.get(PUBLIC)
    return Found(chosen, elsewhere, 0 if public is None else len(_of_content(public, contents)))


def _of_content(manifest: Manifest, contents: frozenset[str]) -> frozenset[str]:
    return frozenset(key for key, sample in manifest.samples.items() if sample.sha256 in contents)


def _purged(
    store: Store, manifests: Mapping[str, Manifest], wanted: frozenset[str], source: str | None
) -> dict[str, frozenset[str]]:
    """Return those of the keys that no shard holds any more, by the source that they were forgotten of."""
    gone = wanted.difference(*(one.samples for name, one in manifests.items() if source in (None, name)))
    lists = sorted(path.stem for path in (store.path / EXCLUSIONS).glob("*.json"))
    found = {
        name: forgotten_keys(store.path / EXCLUSIONS, name, gone) for name in lists if source in (None, name) and gone
    }
    return {name: keys for name, keys in found.items() if keys}


def _manifests(root: Path) -> dict[str, Manifest]:
    mend(root)
    found = {path.parent.name: read_manifest(path.parent) for path in sorted(root.glob(f"*/{MANIFEST}"))}
    if not found:
        raise BadInput(f"there are no shards below '{root}': name their folder with --root")
    return found


def _forget(store: Store, root: str, source: str, keys: Iterable[str]) -> dict[str, Any]:
    """List samples of a source as forgotten, then fit its compartment again if it has learned one of them."""
    start = time.perf_counter()
    with claimed(store.runs, source, "forgotten"):
        pending = _begin(store, source)
        add_forgotten(store.path / EXCLUSIONS, source, keys)
        removed = _remove_runs(store, source)
        if store.has_compartment(source) and store.read_card(source).epsilon is not None:
            mark_private(store, source)
    done: dict[str, Any] = {"removed": [], "outputs": [], "before": None, "after": None}
    if pending.exists():
        done |= _learned_anew(store, root, source, pending)
        pending.unlink()
    done["removed"] = removed + done["removed"]
    return done | {"seconds": round(time.perf_counter() - start, 2)}


def _remove_runs(store: Store, source: str) -> list[dict[str, Any]]:
    """Remove features of held-out images and states of training, without a compartment all runs; return what it was."""
    own = store.runs / "sources" / source
    names = ("*.safetensors", "*.ckpt") if store.folder(source).is_dir() else ("*",)
    removed = []
    for path in sorted({path for name in names for path in own.rglob(name) if path.is_file()}):
        removed.append(asdict(trace(store, path)))
        path.unlink()
    return removed


def _check_refit(store: Store, root: str, source: str) -> None:
    """Raise BadInput if a compartment could not be fitted again: better before anything of it is taken away."""
    from cdm_lightning.refit import recipe_of

    if not store.folder(source).is_dir():
        return
    recipe = recipe_of(_recorded(store, source), store.path, source, root)
    now = recipe.data().data_sha256(source)
    if store.has_compartment(source) and learned_others(store, source, now):
        log.warning("source '%s' was fitted on other images than %s has; it is fitted again on those", source, root)
    is_private = store.has_compartment(source) and store.read_card(source).epsilon is not None
    if is_private and not recipe.privacy.covers(source):
        raise BadInput(
            f"source '{source}' is private, and {_recorded(store, source)}, which it would be fitted by again, is of a "
            "fit without privacy: fit it with privacy.epsilon and --refit first, or forget the whole source"
        )


def _recorded(store: Store, source: str) -> Path:
    """Return the configuration that a source's compartment was fitted by.

    Raises:
        BadInput: there is none.
    """
    recorded = store.runs / "sources" / source / CONFIG
    if not recorded.is_file():
        raise BadInput(f"{recorded} is missing, so '{source}' cannot be fitted again: fit it with --refit first")
    return recorded


def _begin(store: Store, source: str) -> Path:
    """Keep the configuration of a compartment for as long as it is to be fitted again; return where.

    Raises:
        BadInput: it is not known how the compartment was fitted.
    """
    pending = pending_of(store, source)
    remove_unfinished(pending)
    if store.folder(source).is_dir():
        recorded = _recorded(store, source)
        pending.parent.mkdir(exist_ok=True)
        write_atomic(pending, recorded.read_bytes())
    return pending


def _learned_anew(store: Store, root: str, source: str, config: Path) -> dict[str, Any]:
    """Take a compartment away and fit it again, unless it was fitted from what is still used.

    Without an image left it is only taken away; not if it is private: whether it is empty may not show.
    """
    from cdm_lightning.refit import recipe_of, refit

    recipe, before = recipe_of(config, store.path, source, root), store.tensors_sha256([source]).get(source)
    data = recipe.data()
    if store.has_compartment(source) and learned_data(store, source) == data.data_sha256(source):
        return {"before": before, "after": before}
    gone = forget_source(store, source)
    if data.class_counts(source) or recipe.privacy.covers(source):
        refit(config, store.path, source, root)
    removed = [asdict(one) for one in gone.removed]
    after = store.tensors_sha256([source]).get(source)
    return {"removed": removed, "outputs": gone.outputs, "before": before, "after": after}
