"""Held-out denoising error by sigma of a store against monoliths, and what of the distance is the weights' half.

    python -m benchmarks.denoisers --store stores/fashion --root data/fashion --name fashion_denoisers \\
        --against none=stores/fashion_one tokens=stores/fashion_one_tokens

A monolith is a store whose one source is all images: fitted with `--data.split random:1` on the same images with the
same `public`. Networks are evaluated at every level; where a prompt was trained only up to some level, the closed form
is the denoiser from there on. `--by_class` evaluates every image under its class; the stores need model.class_labels.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.denoiser_rows import KNOWN, UNKNOWN, Group, Rows, differences, errors, joined
from benchmarks.store_report import RESULTS
from benchmarks.versions import versions
from cdm_lightning.compartments import Compartments
from cdm_lightning.errors import BadInput
from cdm_lightning.evaluation import SIGMAS
from cdm_lightning.generation import finite_or_text
from cdm_lightning.images import from_uint8
from cdm_lightning.packing import open_compartments
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from cdm_lightning.text_tables import markdown
from datamodules import ShardDataModule
from datamodules.manifest import Manifest, data_sha256, usable

LEVELS = (20.0, 10.0, *SIGMAS)


def opened(store: Store) -> Compartments:
    """Open all sources of a store with the highest switch that its prompts allow: inf without prompts."""
    ranges = [store.read_card(source).sigma_range for source in store.sources()]
    switch = min((top for _, top in filter(None, ranges)), default=float("inf"))
    return open_compartments(store, "all", sigma_switch=switch, device="cpu")


@dataclass(frozen=True)
class Shards:
    """The shards that a store was fitted on.

    Attributes:
        data: of all its sources.
        sources: those of the store.
        union: the manifest that their images have as one source.
    """

    data: ShardDataModule
    sources: list[str]
    union: Manifest

    @classmethod
    def of(cls, store: Store, root: str) -> "Shards":
        """Read the manifests below `root`.

        Raises:
            BadInput: a source of the store was fitted on other images.
        """
        channels, size, _ = store.info.image_shape
        data = ShardDataModule(root, image_size=size, channels=channels)  # type: ignore[arg-type]
        for source in store.sources():
            if store.read_card(source).data_sha256 != data.data_sha256(source):
                raise BadInput(
                    f"source '{source}' of {store.path} was fitted on other images than {root} has of it: give --root "
                    "the shards that the store was fitted on"
                )
        manifests = [data.manifest(source) for source in store.sources()]
        samples = {key: sample for manifest in manifests for key, sample in manifest.samples.items()}
        return cls(data, store.sources(), replace(manifests[0], samples=samples))

    def check(self, label: str, opponent: Store, store: Store) -> None:
        """Compare what an opponent was fitted on with the store's images: then their held-out images are the same.

        Raises:
            BadInput: it has more than one source, or other images or another `public`.
        """
        if len(opponent.sources()) != 1:
            raise BadInput(
                f"opponent '{label}' has {len(opponent.sources())} sources: a monolith has one of all images"
            )
        card, all_images = opponent.read_card(opponent.sources()[0]), data_sha256(usable(self.union, "train", set()))
        same_public = opponent.info.public_data_sha256 == store.info.public_data_sha256
        if card.data_sha256 != all_images or not same_public:
            what = "training images than all sources of the store together" if same_public else "public images"
            raise BadInput(
                f"opponent '{label}' was fitted on other {what}: write its shards with --split random:1 and otherwise "
                f"the options of {self.data.root}, and fit it on these"
            )

    def groups(self, per_source: int, by_class: bool, seed: int) -> Iterator[Group]:
        """Yield the first held-out images of each source, cut by class if asked for.

        Images that another source trained on are left out. The noise of an image does not depend on the cut.
        """
        unseen = usable(self.union, "heldout", set()).keys()
        for source in self.sources:
            keys, images, labels = self.data.images(source, "heldout")
            kept = [i for i, key in enumerate(keys) if key in unseen][:per_source]
            x_0, names = from_uint8(images[kept]), [labels[i] for i in kept]
            noise = torch.randn(x_0.shape, generator=generator(seed, "heldout", source))
            for name in sorted(set(names)) if by_class else [None]:
                mine = torch.tensor([name in (None, own) for own in names])
                yield Group(source, name, x_0[mine], noise[mine])


def known_groups(groups: list[Group], store: Compartments) -> list[Group]:
    """Return the groups whose class the true source was fitted with.

    Raises:
        BadInput: there is none.
    """
    kept = [group for group in groups if group.label in (None, *store.compartments[group.source].classes)]
    if not kept:
        raise BadInput("no held-out image is of a class that its source knows: --by_class needs model.class_labels")
    return kept


def report(options: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """Return everything that the JSON holds, and the errors [level, image] by row."""
    store, against = Store.open(Path(options.store)), {label: Store.open(path) for label, path in options.against}
    shards = Shards.of(store, options.root)
    for label, other in against.items():
        shards.check(label, other, store)
    compartments, opponents = opened(store), {label: opened(other) for label, other in against.items()}
    asked = list(shards.groups(options.per_source, options.by_class, options.seed))
    groups = known_groups(asked, compartments)
    rows = joined([errors(group, compartments, opponents, LEVELS) for group in groups])
    means = {name: row.mean(1).tolist() for name, row in rows.items()}
    n = sum(len(group.x_0) for group in groups)
    result = {
        "sigma": LEVELS,
        "mse": {
            "source known": {name: means[name] for name in KNOWN},
            "source unknown": {name: means[name] for name in UNKNOWN if name in means},
            "opponents": {label: means[label] for label in opponents},
        },
        "differences": differences(rows, list(opponents)),
        "n": n,
        "n_of_unknown_class": sum(len(group.x_0) for group in asked) - n,
        "per_source": options.per_source,
        "by_class": options.by_class,
        "split": "heldout",
        "sources": shards.sources,
        "sigma_switch": {
            "of_the_denoisers": finite_or_text(compartments.sigma_switch),
            "of_the_evidence": compartments.public.sigma_switch,
            "of_opponents": {label: finite_or_text(other.sigma_switch) for label, other in opponents.items()},
        },
        "backbone_sha256": {"store": store.info.backbone_sha256}
        | {label: other.info.backbone_sha256 for label, other in against.items()},
        "seed": options.seed,
        "versions": versions(),
    }
    return result, rows


def summary(result: dict[str, Any]) -> str:
    """Return errors, and below them differences with half the width of their intervals, as Markdown tables."""
    head = [f"{sigma:g}" for sigma in result["sigma"]]
    errors_ = [
        [kind, name, *(f"{value:.4g}" for value in row)]
        for kind, rows in result["mse"].items()
        for name, row in rows.items()
    ]
    apart = [
        [name, *(f"{own['value']:+.2g} ± {own['high'] - own['value']:.2g}" for own in row)]
        for name, row in result["differences"].items()
    ]
    tables = markdown([["", "error at sigma", *head], *errors_]), markdown([["difference at sigma", *head], *apart])
    return "\n\n".join([f"{result['n']} held-out images", *tables])


def labelled_store(text: str) -> tuple[str, Path]:
    """Return the label and the path of LABEL=STORE."""
    label, equals, path = text.partition("=")
    if not (label and equals and path) or label in (*KNOWN, *UNKNOWN):
        raise argparse.ArgumentTypeError(f"expected LABEL=STORE, with a label that names no other row, got '{text}'")
    return label, Path(path)


def main() -> None:
    """Write NAME.json into benchmarks/results, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("store", "root", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--against", nargs="+", default=[], type=labelled_store, metavar="LABEL=STORE")
    parser.add_argument("--by_class", action="store_true", help="everything under the image's class")
    parser.add_argument("--per_source", type=int, default=300, help="held-out images of each source")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        with torch.inference_mode():
            result = report(options)[0]
    except BadInput as error:
        parser.error(str(error))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(summary(result))


if __name__ == "__main__":
    main()
