"""Keep `public` apart from the sources: no image may be in both."""

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from cdm_lightning.errors import ShardError
from datamodules.encoding import Encoded, Sources
from datamodules.manifest import Manifest
from datamodules.names import PUBLIC

log = logging.getLogger("datamodules")


def drop_shared(sources: Sources, drop_from_public: bool) -> Sources:
    """Separate `public` from the sources: an image that is in both leaves the source, or `public` if so asked.

    Sources that have no image left are dropped; one line in the log tells how many images left which source.
    """
    public = _contents(sources.get(PUBLIC, {}))
    private = {key for source, samples in sources.items() if source != PUBLIC for key in _contents(samples)}
    shared = public & private
    kept = {
        source: samples if (source == PUBLIC) != drop_from_public else _without(samples, shared)
        for source, samples in sources.items()
    }
    _report({source: len(sources[source]) - len(kept[source]) for source in sorted(sources)})
    return {source: samples for source, samples in kept.items() if samples}


def _contents(samples: Mapping[str, Encoded]) -> set[str]:
    return {encoded.sample.sha256 for encoded in samples.values()}


def _without(samples: Mapping[str, Encoded], contents: set[str]) -> dict[str, Encoded]:
    return {key: encoded for key, encoded in samples.items() if encoded.sample.sha256 not in contents}


def _report(left: Mapping[str, int]) -> None:
    counts = [f"{source} {count}" for source, count in left.items() if count]
    if counts:
        log.info("images that are both in public and in a source, left out: %s", ", ".join(counts))


def check_apart(root: Path, manifests: Mapping[str, Manifest], exclude: AbstractSet[str]) -> None:
    """Raise ShardError if a source below `root` shares an image with `public`, save for excluded keys.

    The writer keeps them apart, but `root` may hold what several runs wrote.
    """
    contents = {
        source: {sample.sha256 for key, sample in manifest.samples.items() if key not in exclude}
        for source, manifest in manifests.items()
    }
    public = contents.pop(PUBLIC, set())
    for source, own in contents.items():
        if both := own & public:
            raise ShardError(
                f"source '{source}' and public in '{root}' share {len(both)} images, so the backbone would see what "
                "its owner may take back: write the shards of both again in one run, or exclude the source's samples"
            )
