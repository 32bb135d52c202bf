"""KID of several stores' composed models on the same noise and half-samples, so that small differences show."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from cdm_lightning.extractors import EfficientNetLite0
from cdm_lightning.fidelity import sampled_images
from cdm_lightning.generation import Settings
from cdm_lightning.intervals import HalfSamples, score_interval
from cdm_lightning.metrics import kid
from cdm_lightning.packing import open_compartments
from cdm_lightning.resampled_scores import kid_replicates
from cdm_lightning.store import Store


def kids(stores: Mapping[str, Store], held_out: Tensor, n: int) -> dict[str, Any]:
    """Return the KID of each store's composed model to all held-out images, its difference from the first, intervals.

    The same noise, the same subsets and the same half-samples for every store; so what they share cancels.

    Args:
        stores: by name; all differences are from the first.
        held_out: uint8 [n, channel, height, width].
        n: sampled images of each store.
    """
    extractor, settings = EfficientNetLite0(), Settings(n=n, batch_size=128)
    reference = extractor(held_out)
    halves = HalfSamples.draw(n, len(reference), settings.seed)
    pictures, scores, replicates = {}, {}, {}
    for name, store in stores.items():
        model = open_compartments(store, "all", sigma_switch=None, device="cpu").composed(settings.strategy)
        pictures[name] = sampled_images(model, store.info.image_shape, settings)
        features = extractor(pictures[name])
        scores[name] = kid(features, reference, settings.seed)
        replicates[name] = kid_replicates(features, reference, halves)
    first = next(iter(stores))
    rows = {
        name: {
            "kid": asdict(score_interval(value, replicates[name])),
            "deviation_over_subsets": deviation,
            "more_than_before": asdict(score_interval(value - scores[first][0], replicates[name] - replicates[first])),
            "same_pictures_as_before": int((pictures[name] == pictures[first]).flatten(1).all(1).sum()),
        }
        for name, (value, deviation) in scores.items()
    }
    how = {name: getattr(settings, name) for name in ("n", "seed", "sampler", "steps", "strategy", "batch_size")}
    return {"rows": rows, **how, "extractor": extractor.name, "held_out_images": len(reference), "subsets": 100}
