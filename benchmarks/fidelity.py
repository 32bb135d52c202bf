"""FID and KID of sampled images against held-out images of a store's sources (torch-fidelity, Inception).

    python -m benchmarks.fidelity --store stores/fashion --root data/fashion --name fashion_fidelity \\
        --inception weights-inception-2015-12-05-6726825d.pth

Rows: real training images, routed, assign, the closed form alone, and, where `benchmarks.plain_opponent` trained
them, the plain networks tuned to each source. The same noise for every row; resumable row by row.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_opponent import Opponents
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.composition import ComposedDenoiser, Denoiser
from cdm_lightning.denoiser import EDM, SIGMA_MIN, denoise
from cdm_lightning.extractors import Inception
from cdm_lightning.feature_sums import FeatureSums
from cdm_lightning.generation import Settings, batched, sample_batch
from cdm_lightning.images import to_uint8
from cdm_lightning.metrics import frechet_distance, kid
from cdm_lightning.packing import open_compartments
from cdm_lightning.store import Store
from cdm_lightning.strategy import Strategy
from datamodules import ShardDataModule

BATCH = 100
KID_SEED = 2020  # torch-fidelity's
EXTRACTOR = "inception-v3-compat, 2048 features"


def sampled(store: Store, n: int, strategy: Strategy, switch: float | None, plain: Mapping[str, Denoiser]) -> Tensor:
    """Return n images, uint8; `plain` replaces the denoisers of the store's sources."""
    compartments = open_compartments(store, "all", sigma_switch=switch, device="cpu")
    denoisers: Mapping[str, Denoiser] = plain or compartments
    composed = ComposedDenoiser(
        denoisers, compartments.evidence(), compartments.prior(), strategy, compartments.sigma_switch
    )
    shape, settings = store.info.image_shape, Settings(n=n)
    batches = [sample_batch(composed, shape, indices, settings).images for indices in batched(n, BATCH)]
    return to_uint8(torch.cat(batches))


def real(store: Store, root: str, part: str, n: int) -> Tensor:
    """Return n real images, uint8, the same number of every source."""
    channels, size, _ = store.info.image_shape
    data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
    sources = store.sources()
    return torch.cat([data.images(source, part)[1][: n // len(sources)] for source in sources])  # type: ignore[arg-type]


def rows(store: Store, root: str, n: int, work: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield the name of each row and what makes its images."""
    yield "real training images", partial(real, store, root, "train", n)
    yield "guided, routed", partial(sampled, store, n, "routed", None, {})
    yield "guided, assign", partial(sampled, store, n, "assign", None, {})
    yield "closed form alone", partial(sampled, store, n, "assign", 1.01 * SIGMA_MIN, {})
    opponents = Opponents(store, root, work)
    if all((work / f"{source}.safetensors").exists() for source in store.sources()):
        plain = {source: partial(denoise, EDM(), opponents.network(source)) for source in store.sources()}
        yield "plain, tuned to each source, assign", partial(sampled, store, n, "assign", float("inf"), plain)


def scores(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Return FID and KID (unbiased, with its deviation over subsets) of features against reference features."""
    mean, deviation = kid(features, reference, KID_SEED)
    fid = frechet_distance(FeatureSums.of(features), FeatureSums.of(reference))
    return {"fid": fid, "kid": mean, "kid_deviation": deviation}


def main() -> None:
    """Score every row that is not in NAME.json yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name", "inception"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--reference", type=int, default=2000)
    parser.add_argument("--work", default="out/opponents/fashion_plain")
    options = parser.parse_args()
    store, path = Store.open(Path(options.store)), RESULTS / f"{options.name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    result |= {
        "n": options.n,
        "reference": f"{options.reference} held-out images, the same number of every source",
        "extractor": EXTRACTOR,
        "sampler": "Heun, 18 steps",
        "seed": 0,
        "versions": versions(),
    }
    extractor = Inception(Path(options.inception))
    reference = extractor(real(store, options.root, "heldout", options.reference))
    for name, make in rows(store, options.root, options.n, Path(options.work)):
        if name not in result["rows"]:
            result["rows"][name] = scores(extractor(make()), reference)
            path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        print(name, result["rows"][name], flush=True)


if __name__ == "__main__":
    main()
