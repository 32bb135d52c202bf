"""The tables of `benchmarks.quality`: what `evaluate` compares with what."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.quality_stores import TOKEN_RATES

MANY = ("--n", "1000", "--batch_size", "64")
NO_JUDGE = ("--judge_images", "0")  # proportions are those of the same samples in the first table
FEWER = ("--n", "256")


@dataclass(frozen=True)
class Table:
    """One run of `evaluate`.

    Attributes:
        store: whose rows `strategies` are.
        strategies: rows of that store.
        against: the other stores, by the label of their rows.
        base: the row that the others are divided by.
        out: the folder; samples are shared by the tables in it.
        extractor: makes features.
        options: of `evaluate`.
    """

    store: str
    strategies: tuple[str, ...]
    against: Mapping[str, str]
    base: str
    out: str
    extractor: str = "effnet-lite0"
    options: tuple[str, ...] = MANY

    def stores(self) -> tuple[str, ...]:
        """Return the stores that rows other than `strategies` are of."""
        return tuple(self.against.values())


TABLES = {
    "five": Table(
        "ours",
        ("closed_form", "public", "uniform", "posterior", "routed", "assign", "draft"),
        {"full": "ours-full", "mono": "mono", "mono-full": "mono-full"},
        "mono-full",
        "five",
    ),
    "five, plain": Table(
        "paper",
        ("posterior", "classifier"),
        {
            "mono-full": "mono-full",
            "unet-full@3": "unet-full",
            "mono-unet": "mono-unet",
            "mono-unet@3": "mono-unet",
            "mono-tokens": "mono-tokens",
            "mono-tokens40": "mono-tokens40",
        },
        "mono-full",
        "five-plain",
    ),
    "five, FID": Table(
        "ours",
        ("routed",),
        {"full": "ours-full", "mono": "mono", "mono-full": "mono-full"},
        "mono-full",
        "five",
        "inception",
        (*MANY, *NO_JUDGE),
    ),
    "eight": Table(
        "parts",
        ("closed_form", "uniform", "posterior", "routed", "assign", "draft"),
        {
            "full": "parts-full",
            "mono": "parts-mono",
            "mono-full": "parts-mono-full",
            "mono-unet@3": "parts-mono-unet",
        },
        "mono-full",
        "eight",
        options=(*MANY, "--by_class"),
    ),
    "eight, full": Table(
        "parts-full",
        ("routed", "draft"),
        {"mono-full": "parts-mono-full"},
        "mono-full",
        "eight-full",
        options=(*MANY, "--by_class"),
    ),
    "eight, U-Net": Table(
        "parts-guided-unet",
        ("draft",),
        {
            "mono-full": "parts-guided-unet-mono",
            "mono-unet@3": "parts-mono-unet",
        },
        "mono-full",
        "eight-unet",
        options=(*MANY, "--by_class"),
    ),
    "five, seed 1": Table(
        "ours-full-1",
        ("routed", "draft"),
        {"mono-full": "mono-full-1"},
        "mono-full",
        "five-1",
    ),
    "five, U-Net, seed 1": Table(
        "guided-unet-full-1",
        ("routed",),
        {"mono-full": "guided-unet-mono-full-1"},
        "mono-full",
        "five-unet-1",
    ),
    "eight, other ways": Table(
        "parts-full",
        ("draft",),
        {
            "fast": "parts-fast",
            "small": "parts-small",
            "tiny": "parts-tiny",
            "long": "parts-long",
            "lora": "parts-lora",
            "tokens": "parts-tokens",
            "mono-full": "parts-mono-full",
            "mono-full-fast": "parts-mono-full-fast",
            "mono-full-small": "parts-mono-full-small",
            "mono-full-tiny": "parts-mono-full-tiny",
        },
        "mono-full",
        "eight-other",
        options=(*MANY, "--by_class"),
    ),
    "five, U-Net": Table(
        "guided-unet-full",
        ("routed",),
        {
            "untrained": "guided-unet",
            "mono-full": "guided-unet-mono-full",
            "unet-full@3": "unet-full",
            "mono-unet@3": "mono-unet",
        },
        "mono-unet@3",
        "five-unet",
    ),
    "five, U-Net, FID": Table(
        "guided-unet-full",
        ("routed",),
        {"mono-full": "guided-unet-mono-full", "unet-full@3": "unet-full", "mono-unet@3": "mono-unet"},
        "mono-unet@3",
        "five-unet",
        "inception",
        (*MANY, *NO_JUDGE),
    ),
    "eight, long U-Net": Table(
        "parts-long-unet",
        ("draft",),
        {"mono-full": "parts-long-unet-mono"},
        "mono-full",
        "eight-long-unet",
        options=(*MANY, "--by_class"),
    ),
    "five, token rates": Table(
        "mono-tokens",
        ("routed",),
        {rate: f"mono-tokens-{rate}" for rate in TOKEN_RATES},
        "routed",
        "five-token-rates",
    ),
    "fifty": Table(
        "fifty",
        ("closed_form", "routed", "assign", "draft"),
        {"mono": "mono", "mono-full": "mono-full"},
        "mono-full",
        "fifty",
        options=FEWER,
    ),
    "five, more": Table(
        "ours-lora",
        ("routed", "draft"),
        {
            "tokens": "ours-tokens",
            "full": "ours-full",
            "mixed": "ours-mixed",
            "halves": "halves-full",
            "quarters": "quarters-full",
            "mono-full": "mono-full",
            "mono-full-inf": "mono-full-inf",
        },
        "mono-full",
        "five-more",
    ),
    "uvit": Table(
        "uvit",
        ("closed_form", "public", "routed", "assign", "draft"),
        {"full": "uvit-full", "mono": "uvit-mono", "mono-full": "uvit-mono-full"},
        "mono-full",
        "uvit",
    ),
    "uvit, more": Table(
        "uvit-lora",
        ("routed", "draft"),
        {
            "tokens": "uvit-tokens",
            "head": "uvit-head",
            "full": "uvit-full",
            "mixed": "uvit-mixed",
            "halves": "uvit-halves",
            "quarters": "uvit-quarters",
            "mono-full": "uvit-mono-full",
            "mono-full-inf": "uvit-mono-full-inf",
        },
        "mono-full",
        "uvit-more",
    ),
    "uvit, FID": Table(
        "uvit",
        ("routed",),
        {"full": "uvit-full", "mono": "uvit-mono", "mono-full": "uvit-mono-full"},
        "mono-full",
        "uvit",
        "inception",
        (*MANY, *NO_JUDGE),
    ),
    "eight, uvit": Table(
        "parts-uvit-full",
        ("routed", "draft"),
        {"mono-full": "parts-uvit-mono-full"},
        "mono-full",
        "eight-uvit",
        options=(*MANY, "--by_class"),
    ),
}
SECOND = (  # take longer than the rest may together
    *("five, U-Net", "five, U-Net, FID", "five, U-Net, seed 1", "eight, U-Net", "eight, other ways", "five, more"),
    *("eight, long U-Net", "five, token rates", "fifty"),
    *("uvit", "uvit, more", "uvit, FID", "eight, uvit"),
)
