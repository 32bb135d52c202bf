"""The receipt of `forget --sample` as text for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdm_lightning.forget_command import NOT_REMOVED, SHOWN
from cdm_lightning.text_tables import aligned

PURGED_BEFORE = "forgotten before, and no shard holds them"


def receipt_of_samples(report: dict[str, Any]) -> str:
    """Return a receipt as text for people."""
    verb = "would be forgotten" if report["dry_run"] else "forgotten"
    lines = [f"samples of {report['store']}, {report['date']}"]
    for source, keys in report["samples"].items():
        lines.append(f"{verb}: {len(keys)} of source '{source}': {', '.join(keys)}")
        done = report["sources"].get(source)
        if done is not None:
            lines.append(f"  {_said(done)}, {done['seconds']} s")
    for source, keys in report["also_held_by"].items():
        lines.append(f"not forgotten: source '{source}' holds the same images, {', '.join(keys)} (--everywhere)")
    for source, keys in report["purged_before"].items():
        lines.append(f"{PURGED_BEFORE}: {len(keys)} of source '{source}': {', '.join(keys)}")
    if report["purge"] is not None:
        lines += _rewritten(report["purge"]["rewritten"], report)
    lines.append("out of reach:")
    lines += [f"  {place}: {why}" for place, why in _left_in_data(report)]
    outputs = sorted({path for done in report["sources"].values() for path in done["outputs"]})
    lines += [f"  {path}: {NOT_REMOVED}" for path in outputs]
    if report["in_public"]:
        lines.append(f"public: it holds {report['in_public']} of these images, which the backbone was trained on")
    return "\n".join(lines)


def _rewritten(files: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[str]:
    verb = "would be rewritten" if report["dry_run"] else "rewritten"
    if not files:
        return [f"{verb}: nothing, no shard below {report['root']} holds them"]
    names = [f"  {file['path']}" for file in files]
    after = ["removed" if file["after"] is None else file["after"][:SHOWN] for file in files]
    rows = zip(names, (file["before"][:SHOWN] for file in files), after, strict=True)
    return [f"{verb}: {len(files)} files below {report['root']} (sha256 before, after)", aligned(list(rows))]


def _left_in_data(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where the images still are, or may be, and why."""
    if report["purge"] is None:
        why = "the images are still in its shards (--purge); no fit into this store uses them"
        yield from ((place, why) for place in report["shards"])
        return
    for origin in report["purge"]["origins"]:
        yield origin, "where its image came from; `shards` would write it again"
    for source in report["also_held_by"]:
        yield f"{report['root']}/{source}", "holds the same images, see above"
    if report["in_public"]:
        yield f"{report['root']}/public", "holds the same images, see below"
    yield "backups", "copies of the shards elsewhere, snapshots, and blocks that the disk has not written over yet"


def _said(done: Mapping[str, Any]) -> str:
    if done["after"] is None and done["before"] is not None:
        return f"{len(done['removed'])} files removed, its compartment with them: no image is left to learn from"
    if done["after"] is None:
        return "the store has no compartment of it; no later fit will use them"
    if done["before"] == done["after"]:
        return "its compartment has not learned them: held-out or forgotten before"
    before, after = done["before"] or "taken away", done["after"]
    return f"{len(done['removed'])} files removed, its compartment fitted again: sha256 {before[:12]} to {after[:12]}"
