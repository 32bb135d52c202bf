"""The stores that `benchmarks.quality` compares: ours and the monoliths, each trained on as many images.

Five sources are five classes of Fashion-MNIST, others are random parts of the same images; a monolith is a store whose
one source is all of them. `public` is the other five classes in all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 1000  # of training on the sources' images, in all, for every store that is trained, with batches of BATCH
BATCH = 64
CLUSTERS = 10  # of a source, and of each class of it
CONFIG = "fashion_shards.yaml"
SOURCES = {"classes": 5, "union": 1, "halves": 2, "quarters": 4, "parts": 8, "fifty": 50}
SPLITS = {name: f"random:{count}" for name, count in SOURCES.items()} | {"classes": "class"}


@dataclass(frozen=True)
class Fitted:
    """A store: whose backbone it has, how the images are split into sources, and what is trained for each.

    Attributes:
        backbone: the name of the store whose backbone it takes.
        split: a key of SPLITS.
        kind: of compartment.
        options: of `fit`, beside those that follow from the above.
        seed: of the training.
        clusters: of a source's closed form, and of that of each class; a monolith has as many as the sources together.
        batch: images of a training step; of smaller batches there are more, so images are as many.
    """

    backbone: str
    split: str
    kind: str = "none"
    options: tuple[str, ...] = ()
    seed: int = 0
    clusters: int = CLUSTERS
    batch: int = BATCH

    def arguments(self) -> list[str]:
        """Return the options of `fit`."""
        steps = STEPS * BATCH // self.batch // SOURCES[self.split]
        size = ["--data.batch_size", str(self.batch)]
        trained = [*size, "--trainer.max_steps", str(steps)] if self.kind != "none" else []
        what = ["--model.compartment", self.kind, "--model.clusters", str(self.clusters)]
        return [*what, *trained, *BACKBONES[self.backbone], "--seed", str(self.seed), *self.options]


PAPER = ("--model.strategy", "posterior")
TOKEN_RATE = ("--model.prompt_learning_rate", "1e-2")  # of tokens on the U-Net: the best of these and TOKEN_RATES
TOKEN_RATES = ("2e-3", "5e-3", "3e-2", "0.1")
LABELS = ("--model.class_labels", "true")
FULL_RATE = ("--model.prompt_learning_rate", "1e-3")
UNET_RATE = ("--model.prompt_learning_rate", "1.5e-3")  # of a full copy
LONG = ("--trainer.max_steps", "375")  # three times as many
SMALL, TINY = 16, 4  # images of a batch
MIXED = ("--data.public_mix", "0.2")
AVERAGED = ("--model.strategy", "draft")
FAST = ("--model.prompt_learning_rate", "4e-3")
UVIT = (
    *("--model.backbone", "cdm_lightning.backbone.UViT", "--model.backbone.init_args.width", "128"),
    *("--model.backbone.init_args.depth", "5", "--model.backbone.init_args.heads", "4"),
)
PATCHES_OF_7 = ("--model.backbone.init_args.patch_size", "7")
NO_GUIDE = ("--model.guide", "none", "--model.sigma_switch", "inf")
UNET = (
    *("--model.backbone", "cdm_lightning.unet.UNet"),
    *("--model.optimizer", "muon", "--model.learning_rate", "4e-3"),
)
BY_ADAMW = ("--model.optimizer", "adamw", "--model.learning_rate", "1e-3")
BACKBONES: dict[str, Sequence[str]] = {
    "guided": (),
    "guided-1": (),
    "uvit": (*UVIT, *PATCHES_OF_7),
    "unet": (*UNET, *NO_GUIDE),
    "guided-unet": UNET,
    "guided-unet-1": UNET,
    "guided-unet-long": (*UNET, *BY_ADAMW, "--model.backbone_steps", "6000"),
}
# the network of another one, and the noise level up to which prompts are trained on it
SWITCHED = {"guided-inf": ("guided", "inf"), "guided-low": ("guided", "0.3"), "uvit-inf": ("uvit", "inf")}
BACKBONES |= {name: (*BACKBONES[other], "--model.sigma_switch", level) for name, (other, level) in SWITCHED.items()}
UNION = SOURCES["classes"] * CLUSTERS
PARTS = SOURCES["parts"] * CLUSTERS

STORES = {
    # five sources, a class each
    "ours": Fitted("guided", "classes"),
    "ours-full": Fitted("guided", "classes", "full", FULL_RATE),
    "paper": Fitted("unet", "classes", "tokens", (*PAPER, *TOKEN_RATE)),
    "unet-full": Fitted("unet", "classes", "full", UNET_RATE),
    "mono": Fitted("guided", "union", clusters=UNION),
    "mono-full": Fitted("guided", "union", "full", FULL_RATE, clusters=UNION),
    "mono-unet": Fitted("unet", "union", "full", UNET_RATE, clusters=UNION),
    "guided-unet": Fitted("guided-unet", "classes"),
    "guided-unet-full": Fitted("guided-unet", "classes", "full", UNET_RATE),
    "guided-unet-mono-full": Fitted("guided-unet", "union", "full", UNET_RATE, clusters=UNION),
    "mono-tokens": Fitted("unet", "union", "tokens", TOKEN_RATE, clusters=UNION),
    "mono-tokens40": Fitted("unet", "union", "tokens", ("--model.tokens", "40", *TOKEN_RATE), clusters=UNION),
    **{
        f"mono-tokens-{rate}": Fitted("unet", "union", "tokens", ("--model.prompt_learning_rate", rate), clusters=UNION)
        for rate in TOKEN_RATES
    },
    # other kinds of compartment, and numbers of owners
    "ours-tokens": Fitted("guided", "classes", "tokens"),
    "ours-lora": Fitted("guided", "classes", "lora"),
    "ours-mixed": Fitted("guided", "classes", "full", (*FULL_RATE, *MIXED)),
    "halves-full": Fitted("guided", "halves", "full", FULL_RATE, clusters=UNION // 2),
    "quarters-full": Fitted("guided", "quarters", "full", FULL_RATE, clusters=UNION // 4),
    "mono-full-inf": Fitted("guided-inf", "union", "full", FULL_RATE, clusters=UNION),
    "mono-full-low": Fitted("guided-low", "union", "full", FULL_RATE, clusters=UNION),
    # eight random parts, class-conditional
    "parts": Fitted("guided", "parts", options=LABELS),
    "parts-full": Fitted("guided", "parts", "full", (*FULL_RATE, *LABELS)),
    "parts-mono": Fitted("guided", "union", options=LABELS, clusters=PARTS),
    "parts-mono-full": Fitted("guided", "union", "full", (*FULL_RATE, *LABELS), clusters=PARTS),
    # a second seed
    "ours-full-1": Fitted("guided-1", "classes", "full", FULL_RATE, seed=1),
    "mono-full-1": Fitted("guided-1", "union", "full", FULL_RATE, seed=1, clusters=UNION),
    "guided-unet-full-1": Fitted("guided-unet-1", "classes", "full", UNET_RATE, seed=1),
    "guided-unet-mono-full-1": Fitted("guided-unet-1", "union", "full", UNET_RATE, seed=1, clusters=UNION),
    # eight parts, averaged: a higher rate, smaller batches, longer, other kinds
    "parts-fast": Fitted("guided", "parts", "full", (*FAST, *LABELS, *AVERAGED)),
    "parts-mono-full-fast": Fitted("guided", "union", "full", (*FAST, *LABELS), clusters=PARTS),
    "parts-long": Fitted("guided", "parts", "full", (*FULL_RATE, *LABELS, *AVERAGED, *LONG)),
    "parts-small": Fitted("guided", "parts", "full", (*FULL_RATE, *LABELS, *AVERAGED), batch=SMALL),
    "parts-tiny": Fitted("guided", "parts", "full", (*FULL_RATE, *LABELS, *AVERAGED), batch=TINY),
    "parts-mono-full-small": Fitted("guided", "union", "full", (*FULL_RATE, *LABELS), clusters=PARTS, batch=SMALL),
    "parts-mono-full-tiny": Fitted("guided", "union", "full", (*FULL_RATE, *LABELS), clusters=PARTS, batch=TINY),
    "parts-guided-unet": Fitted("guided-unet", "parts", "full", (*UNET_RATE, *LABELS, *AVERAGED)),
    "parts-guided-unet-mono": Fitted("guided-unet", "union", "full", (*UNET_RATE, *LABELS), clusters=PARTS),
    "parts-long-unet": Fitted("guided-unet-long", "parts", "full", (*FULL_RATE, *LABELS, *AVERAGED)),
    "parts-long-unet-mono": Fitted("guided-unet-long", "union", "full", (*FULL_RATE, *LABELS), clusters=PARTS),
    "parts-mono-unet": Fitted("unet", "union", "full", (*UNET_RATE, *LABELS), clusters=PARTS),
    "parts-lora": Fitted("guided", "parts", "lora", (*LABELS, *AVERAGED)),
    "parts-tokens": Fitted("guided", "parts", "tokens", (*LABELS, *AVERAGED)),
    # fifty owners; with one Gaussian each, so fifty in all, their classes could not be told apart
    "fifty": Fitted("guided", "fifty"),
    # a transformer
    "uvit": Fitted("uvit", "classes"),
    "uvit-full": Fitted("uvit", "classes", "full", FULL_RATE),
    "uvit-tokens": Fitted("uvit", "classes", "tokens"),
    "uvit-lora": Fitted("uvit", "classes", "lora"),
    "uvit-head": Fitted("uvit", "classes", "head"),
    "uvit-mixed": Fitted("uvit", "classes", "full", (*FULL_RATE, *MIXED)),
    "uvit-halves": Fitted("uvit", "halves", "full", FULL_RATE, clusters=UNION // 2),
    "uvit-quarters": Fitted("uvit", "quarters", "full", FULL_RATE, clusters=UNION // 4),
    "uvit-mono": Fitted("uvit", "union", clusters=UNION),
    "uvit-mono-full": Fitted("uvit", "union", "full", FULL_RATE, clusters=UNION),
    "uvit-mono-full-inf": Fitted("uvit-inf", "union", "full", FULL_RATE, clusters=UNION),
    "parts-uvit-full": Fitted("uvit", "parts", "full", (*FULL_RATE, *LABELS)),
    "parts-uvit-mono-full": Fitted("uvit", "union", "full", (*FULL_RATE, *LABELS), clusters=PARTS),
}
