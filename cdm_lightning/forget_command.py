"""The command line of `forget`: a source leaves a store, with a receipt of what went and what is out of reach."""

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdm_lightning.errors import BadInput, ShardError
from cdm_lightning.fit_record import fit_record
from cdm_lightning.forgetting import Forgotten, forget_source, pending_of
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.releases import RELEASES, released
from cdm_lightning.store import EXCLUSIONS, LEDGER, Store
from cdm_lightning.text_tables import aligned
from datamodules.manifest import MANIFEST, Manifest, read_manifest
from datamodules.names import PUBLIC

SHOWN = 12  # hex digits of a hash in the text
NOT_FROM_HERE = "its shards, as seen from where it was fitted, but not from here"
NOT_REMOVED = "made with it, and not removed: delete it if nobody may have it"


def forget_parser() -> Parser:
    """Return the parser of `forget`."""
    parser = new_parser("forget", "Remove every trace of a source from a store, and say what is out of reach.")
    parser.add_argument("--store", type=str, required=True, help="the store")
    parser.add_argument("--source", type=str, default=None, help="the source to forget, or that of the samples")
    parser.add_argument("--sample", action="append", default=None, help="key of a sample to forget; may be repeated")
    parser.add_argument("--list", type=str | None, default=None, help="file of keys of samples to forget, one a line")
    parser.add_argument("--everywhere", action="store_true", help="forget the same images in other sources too")
    parser.add_argument("--purge", action="store_true", help="also rewrite the shards, without the samples")
    parser.add_argument(
        "--root", type=str | None, default=None, help="folder of the shards; by default that of the fit"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--json", type=str | None, default=None, help="also write the receipt, with all hashes")
    return parser


def forget(config: Any) -> dict[str, Any]:
    """Forget the source that a parsed command line names, and return the receipt.

    Raises:
        BadInput: the store or the source cannot be used.
    """
    if config.source is None:
        raise BadInput("nothing to forget is named: --source SOURCE, --sample KEY or --list FILE of keys")
    if config.purge:
        raise BadInput(
            f"--purge takes single images out of their shards: name them with --sample or --list; of the whole source "
            f"'{config.source}', delete the folder of its shards"
        )
    store = Store.open(Path(config.store))
    recorded = fit_record(store, config.source).root if config.root is None else config.root
    root = None if recorded is None else Path(recorded)
    forgotten = forget_source(store, config.source, config.dry_run)
    if not config.dry_run:
        pending_of(store, config.source).unlink(missing_ok=True)  # of a cut `forget --sample`
    return {
        "store": os.path.abspath(store.path),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry_run": config.dry_run,
        **asdict(forgotten),
        "out_of_reach": out_of_reach(store, forgotten, root),
        "public": public_overlap(config.source, root),
    }


def out_of_reach(store: Store, forgotten: Forgotten, root: Path | None) -> list[dict[str, str]]:
    """Return what is left of a source outside the store's compartments and runs, and what to do about it."""
    left = []
    if root is not None and (root / forgotten.source).exists():
        left.append((str(root / forgotten.source), "its shards: delete them, or a later fit learns it again"))
    elif root is not None and not root.is_absolute():
        left.append((str(root / forgotten.source), f"{NOT_FROM_HERE}: delete them, or a later fit learns it again"))
    left += [(path, NOT_REMOVED) for path in forgotten.outputs]
    if (store.path / EXCLUSIONS / f"{forgotten.source}.json").exists():
        left.append((f"{EXCLUSIONS}/{forgotten.source}.json", "keyed hashes of its samples that were forgotten before"))
    if released(store.path, forgotten.source).mus:
        left.append((RELEASES, "what it has released is out, and stays counted if it comes again"))
    left.append((LEDGER, "its name and the hashes of its compartment stay, as the proof of what happened"))
    return [{"path": path, "why": why} for path, why in left]


def public_overlap(source: str, root: Path | None) -> dict[str, Any]:
    """Return which classes and how many images of a source are also in `public`, which the backbone has seen.

    `checked` is false where the shards of both are not there: then nothing is known.
    """
    own, public = (None if root is None else _manifest(root / name) for name in (source, PUBLIC))
    if own is None or public is None:
        return {"checked": False, "classes": [], "images": 0}
    classes, images = _labels(own) & _labels(public), _contents(own) & _contents(public)
    return {"checked": True, "classes": sorted(classes), "images": len(images)}


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder) if (folder / MANIFEST).exists() else None
    except ShardError:
        return None


def _labels(manifest: Manifest) -> set[str]:
    return {sample.label for sample in manifest.samples.values()}


def _contents(manifest: Manifest) -> set[str]:
    return {sample.sha256 for sample in manifest.samples.values()}


def receipt(report: dict[str, Any]) -> str:
    """Return a receipt as text for people."""
    source, removed = report["source"], report["removed"]
    size = sum(trace["bytes"] for trace in removed)
    verb = "would be removed" if report["dry_run"] else "removed"
    lines = [f"source '{source}' of {report['store']}, {report['date']}"]
    if removed:
        lines.append(f"{verb}: {len(removed)} files, {size:,} bytes (path, sha256)")
        lines.append(aligned([(f"  {trace['path']}", trace["sha256"][:SHOWN]) for trace in removed]))
    else:
        lines.append(f"{verb}: nothing, no trace of it was left in the store")
    lines.append(f"unchanged: the backbone and {len(report['others_sha256'])} other compartments")
    lines.append("out of reach:")
    lines += [f"  {left['path']}: {left['why']}" for left in report["out_of_reach"]]
    return "\n".join([*lines, f"public: {_seen(report['public'])}"])


def _seen(public: dict[str, Any]) -> str:
    if not public["checked"]:
        return (
            "not checked, the shards of both are not there (--root): what of it is also in public, the backbone keeps"
        )
    if not public["classes"] and not public["images"]:
        return "no image and no class of it is in public, which the backbone was trained on"
    classes = f"images of {', '.join(public['classes'])}" if public["classes"] else "no image of its classes"
    return (
        f"it holds {classes} and {public['images']} of its own images: the backbone was trained on those, and "
        "forgetting does not reach them"
    )
