"""What `benchmarks.speed` times: pairs of things in turns, so that what else the machine does slows both alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from cdm_lightning.backbone import UViT, freeze
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.cost import peak_of_process
from cdm_lightning.denoiser import Network
from cdm_lightning.generation import Settings, batched, sample_batch
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.prompts import Head, Prompt, Tokens
from cdm_lightning.seeding import generator
from cdm_lightning.store import Store
from datamodules import ShardDataModule

PAIRS = 5
BATCH = 64
TOKENS = 8
Key = TypeVar("Key")


@dataclass(frozen=True)
class Seconds:
    """What something took by the clock, and of the processor."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Ratio:
    """How many times the seconds of another thing one takes, over turns.

    Attributes:
        seconds: of the one, median, by the clock.
        ratio: median over turns, by the clock.
        least: of all turns.
        most: of all turns.
        processor: median over turns, in seconds of the processor, which other work on the machine hardly changes.
    """

    seconds: float
    ratio: float
    least: float
    most: float
    processor: float

    @classmethod
    def of(cls, ones: Sequence[Seconds], others: Sequence[Seconds]) -> "Ratio":
        """Return the ratio of two things that were timed in the same turns."""
        turns = list(zip(ones, others, strict=True))
        ratios = [one.clock / other.clock for one, other in turns]
        processor = statistics.median(one.processor / other.processor for one, other in turns)
        seconds = statistics.median(one.clock for one in ones)
        return cls(seconds, statistics.median(ratios), min(ratios), max(ratios), processor)


def seconds_of(action: Callable[[], object]) -> Seconds:
    """Return how long something takes."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def by_turns(actions: Mapping[Key, Callable[[], object]], turns: int = PAIRS) -> dict[Key, list[Seconds]]:
    """Time things in turns, after one turn that does not count."""
    for action in actions.values():
        action()
    found: dict[Key, list[Seconds]] = {name: [] for name in actions}
    for _ in range(turns):
        for name, action in actions.items():
            found[name].append(seconds_of(action))
    return found


def in_turns(one: Callable[[], object], other: Callable[[], object], pairs: int = PAIRS) -> Ratio:
    """Time two things in turns."""
    found = by_turns({"one": one, "other": other}, pairs)
    return Ratio.of(found["one"], found["other"])


def opened(store: Path, sources: str | list[str]) -> Compartments:
    """Open sources of a store as its backbone was fitted."""
    return open_compartments(Store.open(store), sources, sigma_switch=None, device="cpu")


def sampling(model: Compartments, settings: Settings) -> Callable[[], None]:
    """Return what samples one batch of 64 images, weights not noted."""
    composed, shape = model.composed(settings.strategy), model.public.closed_form.shape

    def action() -> None:
        sample_batch(composed, shape, range(BATCH), settings, weigh=False)

    return action


def proportions(model: Compartments, settings: Settings, images: int = 512) -> dict[str, float]:
    """Return how far the sources that images follow are from the prior: the largest difference, and chi-square's p."""
    composed, drawn = model.composed(settings.strategy), list[str]()
    for indices in batched(images, BATCH):
        drawn += sample_batch(composed, model.public.closed_form.shape, indices, settings, weigh=False).drawn or []
    expected = {source: share * len(drawn) for source, share in model.prior().items()}
    counted = [drawn.count(source) for source in expected]
    off = max(abs(count - one) for count, one in zip(counted, expected.values(), strict=True)) / len(drawn)
    return {"images": len(drawn), "off": off, "p": float(chisquare(counted, list(expected.values())).pvalue)}


def evaluations(model: Compartments, settings: Settings) -> float:
    """Return how often the network is evaluated for one image."""
    before = model.evaluations
    sampling(model, settings)()
    return (model.evaluations - before) / BATCH


class Nothing:
    """Evidence and denoiser that cost nothing."""

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return zeros [batch]."""
        return torch.zeros_like(sigma)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x."""
        return x


def sampler_alone(model: Compartments, settings: Settings) -> Callable[[], None]:
    """Return what samples like `sampling`, with as many sources, but with denoisers that cost nothing."""
    parts = {source: Nothing() for source in model.compartments}
    composed = ComposedDenoiser(parts, parts, model.prior(), settings.strategy, model.sigma_switch)

    def action() -> None:
        sample_batch(composed, model.public.closed_form.shape, range(BATCH), settings, weigh=False)

    return action


def training_step(
    store: Path, kind: Literal["whole", "tokens", "head"], prompted: int | None = None
) -> Callable[[], None]:
    """Return one step on 64 images: of the whole network, or of a source's prompt on the frozen network.

    Args:
        store: has the network.
        kind: what is trained.
        prompted: of a U-ViT, how many of its blocks see tokens, the last ones; all if None.
    """
    network, g = unpack_backbone(*Store.open(store).read_backbone())[0], generator("speed", "step")
    if prompted is not None:
        network = UViT(**network.init_args | {"prompted": prompted})
    shape, first = Store.open(store).info.image_shape, torch.zeros(BATCH).long()
    x, level = torch.randn(BATCH, *shape, generator=g), torch.rand(BATCH, generator=g)
    guide = torch.cat([x, -x], dim=1) if network.init_args["guided"] else None
    trained: nn.Module = network.requires_grad_()
    if kind != "whole":
        freeze(network)
        trained = Tokens(network, TOKENS, 0, g) if kind == "tokens" else Head(network, 0, g)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)

    def run() -> Network:
        return type(trained).network(network, [trained], first, first) if isinstance(trained, Prompt) else network

    def action() -> None:
        optimizer.zero_grad()
        run()(x, level, guide=guide).square().mean().backward()
        optimizer.step()

    return action


def back_to_the_input(store: Path) -> Callable[[], None]:
    """Return what goes forward through a frozen network and back to its input, 64 images: the least of a step of tokens
    that every block sees, which asks for no gradient of a weight either.
    """
    network, g = unpack_backbone(*Store.open(store).read_backbone())[0], generator("speed", "step")
    freeze(network)
    x = torch.randn(BATCH, *Store.open(store).info.image_shape, generator=g).requires_grad_()
    level = torch.rand(BATCH, generator=g)

    def action() -> None:
        x.grad = None
        network(x, level).square().mean().backward()

    return action


def images_per_second(root: Path, source: str, size: int, channels: Literal[1, 3]) -> float:
    """Return images a second of the processor from tar to batch, by the training stream of one source."""
    data = ShardDataModule(str(root), image_size=size, channels=channels, heldout_fraction=0.0, batch_size=BATCH)
    data.open(source)
    batches = iter(data.train_dataloader())
    next(batches)
    rates = [BATCH * len(once) / seconds for once, seconds in (_timed(batches) for _ in range(PAIRS))]
    return statistics.median(rates)


def _timed(batches: Iterator[Any]) -> tuple[list[Any], float]:
    start = time.process_time()
    once = [next(batches) for _ in range(32)]
    return once, time.process_time() - start


def opening(store: Path, sources: str | list[str]) -> dict[str, float]:
    """Return seconds and bytes that opening some sources of a store takes, in a process of its own, and its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_opening, store, sources).result()


def _opening(store: Path, sources: str | list[str]) -> dict[str, float]:
    torch.set_num_threads(1)
    before, held = _bytes_read(), peak_of_process() or 0
    seconds = seconds_of(lambda: opened(store, sources)).clock
    return {
        "seconds": seconds,
        "MB_read": (_bytes_read() - before) / 1e6,
        "MB_held": ((peak_of_process() or 0) - held) / 1e6,
    }


def _bytes_read() -> int:
    """Return how many bytes this process has read so far; 0 where the system does not say."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.is_file() else 0
