"""The card of a compartment: what it was fitted on and how; for machines card.json, for people README.md."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Self

from cdm_lightning.errors import StoreError
from cdm_lightning.tensor_files import FIT_AGAIN, JsonScalar, checked_fields, json_text, read_object

SCALARS = (str, int, float, bool, type(None))
ENVIRONMENT = ("torch_version", "cpu_capability", "threads")  # on a card, but no reason to fit again


@dataclass(frozen=True)
class Card:
    """What a compartment was fitted on and how, from its own source alone: no other source, path, date or host."""

    source: str
    n: int  # distinct training samples
    class_counts: dict[str, int]
    data_sha256: str
    seed: int
    steps: int
    compartment: str  # what was trained: none, tokens, lora, head or full
    prompt_parameters: int  # how many were trained; 0 without a prompt
    sigma_range: tuple[float, float] | None  # the noise levels the prompt was trained on; None without a prompt
    settings: dict[str, JsonScalar]
    backbone_sha256: str
    image_shape: tuple[int, int, int]  # channel, height, width
    torch_version: str
    cpu_capability: str
    threads: int

    @property
    def public_mix(self) -> float:
        """Return the share of `public` in what the prompt was trained on.

        Raises:
            StoreError: it is no share.
        """
        share = self.settings.get("public_mix", 0.0)
        if not isinstance(share, float) or not 0 <= share < 1:
            raise StoreError(
                f"the card of source '{self.source}' is damaged: its public_mix is {share!r}, expected a number of at "
                "least 0 and below 1; fit the source again"
            )
        return share

    @property
    def epsilon(self) -> float | None:
        """Return the epsilon of all that this source has released, at `delta`; None without differential privacy.

        Raises:
            StoreError: it is no epsilon.
        """
        return self._budget("spent_epsilon")

    @property
    def delta(self) -> float | None:
        """Return the delta of all that this source has released; None without differential privacy.

        Raises:
            StoreError: it is no delta.
        """
        return self._budget("delta")

    @property
    def slack(self) -> float:
        """Return the part of delta that the training of private prompts has set aside (see `subsampled_gaussian`).

        Raises:
            StoreError: it is no part of delta.
        """
        return self._budget("slack") or 0.0

    def _budget(self, key: str) -> float | None:
        value = self.settings.get(key)
        if value is not None and not (isinstance(value, float) and 0 < value < math.inf):
            raise StoreError(
                f"the card of source '{self.source}' is damaged: its {key} is {value!r}, expected a number above 0; "
                "restore it from a copy"
            )
        return value

    def inputs(self) -> dict[str, Any]:
        """Return what decides whether a compartment is up to date: all but the environment it was fitted in."""
        return {key: value for key, value in asdict(self).items() if key not in ENVIRONMENT}

    def to_json(self) -> str:
        """Return the text of card.json: sorted keys, so equal cards are equal bytes."""
        return json_text(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a card.json.

        Raises:
            StoreError: the file is missing or no JSON object, a key is missing or unknown, or a value is impossible.
        """
        card = cls(**checked_fields(read_object(path), cls, path))
        for name, expected in card._faults():
            raise StoreError(
                f"{path} is damaged: its {name} is {getattr(card, name)!r}, expected {expected}: {FIT_AGAIN}"
            )
        return card

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Yield the name of every value that no fit writes, and what was expected."""
        for name in ("source", "data_sha256", "compartment", "backbone_sha256", "torch_version", "cpu_capability"):
            if not isinstance(getattr(self, name), str):
                yield name, "a text"
        for name, least in (("n", 1), ("seed", 0), ("steps", 0), ("prompt_parameters", 0), ("threads", 1)):
            if not _is_count(getattr(self, name), least):
                yield name, f"a whole number of at least {least}"
        if not isinstance(self.class_counts, dict) or not all(_is_count(n, 0) for n in self.class_counts.values()):
            yield "class_counts", "a number of images for each class"
        if not isinstance(self.settings, dict) or not all(isinstance(one, SCALARS) for one in self.settings.values()):
            yield "settings", "a mapping of names to texts and numbers"
        elif len({"spent_epsilon", "delta"} & set(self.settings)) == 1:
            yield "settings", "spent_epsilon and delta, or neither"
        if not _are_numbers(self.image_shape, 3, int):
            yield "image_shape", "channel, height and width"
        if self.sigma_range is not None and not _are_numbers(self.sigma_range, 2, int | float):
            yield "sigma_range", "the least and the largest noise level, or null"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_numbers(values: object, many: int, kind: type[int] | UnionType) -> bool:
    """Return whether these are so many finite positive numbers of a kind."""
    if not isinstance(values, tuple) or len(values) != many:
        return False
    return all(isinstance(one, kind) and not isinstance(one, bool) and 0 < one < math.inf for one in values)


def model_card(card: Card) -> str:
    """Return the README.md of a compartment for people: a function of the card alone."""
    return f"""# Compartment `{card.source}`

One compartment of a compartmentalized diffusion model: what was learned from the data of the source
`{card.source}`, and from no other source. It works with the backbone `{card.backbone_sha256[:12]}` only.

## Data
{_data(card)}

## How it was made
A closed form (Gaussians per cluster) was fitted. {_training(card)} Seed {card.seed}.

| setting | value |
|---|---|
{_rows(card.settings)}

## Forgetting it
`python -m cdm_lightning forget --store STORE --source {card.source}` deletes this folder and every other trace in the
store. The backbone and the other compartments do not depend on this source's data: they stay what they would be if it
had never been there.

## Privacy
{_privacy(card)}
"""


def _data(card: Card) -> str:
    shape = "x".join(str(side) for side in card.image_shape)
    if card.epsilon is not None:
        return f"About {card.n} distinct training images of shape {shape} (channel, height, width), counted with noise."
    counted = f"{card.n} distinct training images of shape {shape} (channel, height, width)."
    return f"{counted}\n\n| class | images |\n|---|---|\n{_rows(card.class_counts)}"


def _privacy(card: Card) -> str:
    if card.epsilon is None:
        return (
            "Statistics are not anonymous: a cluster of a few images is nearly those images. Without differential "
            "privacy a\ncompartment may reveal the images it was made from. Treat this folder as you treat the images."
        )
    releases = card.settings["releases"]
    times = (
        "in one release" if releases == 1 else f"in {releases} releases together; whoever kept the others knows them"
    )
    return (
        f"Differentially private: epsilon {card.epsilon:.4g}, delta {card.delta:g}, {times}. The unit is one image, "
        "added or removed.\nEverything here was computed from noised statistics, with noise of a secret. If the owner "
        "released these images\nelsewhere too, that adds up."
    )


def _training(card: Card) -> str:
    if card.sigma_range is None:
        return "No prompt was trained."
    low, high = card.sigma_range
    trained = (
        f"A prompt ({card.compartment}, {card.prompt_parameters:,} parameters) was trained for {card.steps} steps on "
        f"noise levels {low:g} to {high:g}."
    )
    if not card.public_mix:
        return trained
    return (
        f"{trained} A share of {card.public_mix:g} of its training images was drawn from `public`, which nobody owns: "
        "the compartment stands for that mixture of its source and `public`."
    )


def _rows(values: Mapping[str, JsonScalar]) -> str:
    return "\n".join(f"| {key} | {values[key]} |" for key in sorted(values))
