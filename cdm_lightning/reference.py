"""The held-out images of each source as metrics see them, kept in a file per source and joined for any subset."""

import hashlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from cdm_lightning.errors import UNWRITABLE, StoreError
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.feature_sums import FeatureSums
from cdm_lightning.images import spread
from cdm_lightning.tensor_files import Json, json_text, read_tensors, write_tensors

FEWEST = 2  # images that a metric needs on each side
HELDOUT_IMAGES = 1000  # of a source that are looked at


@dataclass(frozen=True)
class Reference:
    """Features of held-out images, float32 [n, dimension], and their sums."""

    features: Tensor
    sums: FeatureSums


def joined(references: Mapping[str, Reference], prior: Mapping[str, float]) -> Reference:
    """Return the reference of the union of at least one source: features in the order of the names, sums added.

    Args:
        references: by source; each gives as many as `in_shares` says.
        prior: lambda_i of the sources that are joined.
    """
    count = in_shares({source: len(references[source].features) for source in prior}, prior)
    chosen = [_at_most(references[source], count[source]) for source in sorted(prior)]
    return Reference(torch.cat([part.features for part in chosen]), reduce(operator.add, (p.sums for p in chosen)))


def in_shares(images: Mapping[str, int], prior: Mapping[str, float]) -> dict[str, int]:
    """Return how many of the held-out images of each source stand for it beside the others, at least one.

    A source with HELDOUT_IMAGES may have more, of which the others would then have too great a share: so where there
    is one, others give no more than the prior lets expect beside it.

    Args:
        images: number of held-out images by source, HELDOUT_IMAGES at most.
        prior: lambda_i of the same sources.
    """
    whole = [prior[source] for source in images if images[source] >= HELDOUT_IMAGES]
    if not whole:
        return dict(images)
    return {source: min(n, max(round(HELDOUT_IMAGES / max(whole) * prior[source]), 1)) for source, n in images.items()}


def _at_most(reference: Reference, images: int) -> Reference:
    if len(reference.features) <= images:
        return reference
    features = spread(reference.features, images)
    return Reference(features, FeatureSums.of(features))


def references_of(folder: Path, held_out: Mapping[str, Tensor], extractor: FeatureExtractor) -> dict[str, Reference]:
    """Return the reference of every source that has enough held-out images; see `source_reference`."""
    return {
        source: source_reference(folder, source, images, extractor)
        for source, images in held_out.items()
        if len(images) >= FEWEST
    }


def source_reference(folder: Path, source: str, images: Tensor, extractor: FeatureExtractor) -> Reference:
    """Return the reference of one source; its features are computed once per extractor and set of images.

    They are kept in `folder/SOURCE/EXTRACTOR-KEY.safetensors`, KEY being a hash of all that they depend on. So other
    images, weights or transforms never get them; a file that is damaged or from elsewhere is replaced. All of
    `folder/SOURCE` depends on this source alone: who forgets the source, or an image of it, deletes it. The sums are
    not in the file: they would be 8 dimension^2 bytes, and reading those takes as long as adding the sums up. Where
    there is no permission to write, nothing is kept.

    Args:
        folder: where references are kept.
        source: name of the source.
        images: its held-out images, uint8 [n, channel, height, width], always in the same order.
        extractor: makes their features.
    """
    identity = identity_of(images, extractor)
    path = folder / source / f"{extractor.name}-{key_of(identity)}.safetensors"
    features = _kept(path, identity)
    if features is None:
        features = extractor(images)
        _keep(path, features, identity)
    return Reference(features, FeatureSums.of(features))


def identity_of(images: Tensor, extractor: FeatureExtractor) -> dict[str, Json]:
    """Return all that the features of images depend on: the extractor, and number, shape and grey levels of images."""
    return {
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "shape": list(images.shape),
        "sha256": images_sha256(images),
    }


def images_sha256(images: Tensor) -> str:
    """Return the hash of the grey levels of images, uint8."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def key_of(identity: Mapping[str, Json]) -> str:
    """Return 12 hex digits that differ where identities do."""
    return hashlib.sha256(json_text(identity).encode()).hexdigest()[:12]


def _keep(path: Path, features: Tensor, identity: Mapping[str, Json]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"features": features}, identity)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise


def _kept(path: Path, identity: Mapping[str, Json]) -> Tensor | None:
    """Return the features in a file, or None if it is missing, damaged or not of this identity."""
    try:
        tensors, metadata = read_tensors(path)
    except StoreError:
        return None
    return tensors["features"] if metadata == identity else None
