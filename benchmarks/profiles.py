"""Where the time goes: seconds by operation of one batch of samples, and of training steps, as pictures.

    python -m benchmarks.profiles --work out/speed

After `benchmarks.speed` with the same WORK: its default network, one thread. Writes
benchmarks/results/speed_profile_sampling.png and speed_profile_training.png.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import DEFAULT
from benchmarks.speed_rows import opened, sampling, training_step
from benchmarks.speed_stores import OWNERS
from cdm_lightning.allocator import keep_freed_memory
from cdm_lightning.generation import Settings

RESULTS = Path(__file__).parent / "results"
SHOWN = 9  # operations; the others are one bar
STEPS = 3


def seconds_by_operation(action: Callable[[], object]) -> dict[str, float]:
    """Return seconds by operation of PyTorch, those of operations that it calls not counted; the largest first."""
    action()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        action()
    rows = sorted(((one.self_cpu_time_total / 1e6, one.key) for one in found.key_averages()), reverse=True)
    named = {key.removeprefix("aten::"): seconds for seconds, key in rows[:SHOWN]}
    return named | {"all others": sum(seconds for seconds, _ in rows[SHOWN:])}


def draw(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a row of horizontal bars for each thing that was profiled, as shares of its seconds."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(5.2 * len(found), 3.6), squeeze=False, layout="constrained")
    for axis, (title, seconds) in zip(axes[0], found.items(), strict=True):
        total = sum(seconds.values())
        bars = axis.barh(list(seconds), [100 * one / total for one in seconds.values()], color="#4477aa")
        axis.bar_label(bars, fmt="%.0f %%", padding=2)
        axis.invert_yaxis()
        axis.set_title(title.replace(", ", "\n", 1), fontsize=10)
        axis.set_xlim(0, 115 * max(seconds.values()) / total)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of the seconds, %", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Profile, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("out/speed"), help="the folder of `benchmarks.speed`")
    work: Path = parser.parse_args().work
    torch.set_num_threads(1)
    keep_freed_memory()
    every, plain = opened(work / f"guided-{DEFAULT}", OWNERS), opened(work / f"plain-{DEFAULT}", ["everybody"])

    def steps(kind: Literal["whole", "tokens"]) -> Callable[[], object]:
        step = training_step(work / f"plain-{DEFAULT}", kind)
        return lambda: [step() for _ in range(STEPS)]

    sampled = {
        "64 images, one plain model": sampling(plain, Settings()),
        "64 images, routed, N = 8, from the switch": sampling(every, Settings(start="switch")),
    }
    trained = {f"{STEPS} steps, whole network": steps("whole"), f"{STEPS} steps, tokens alone": steps("tokens")}
    for name, actions in (("sampling", sampled), ("training", trained)):
        found = {title: seconds_by_operation(action) for title, action in actions.items()}
        draw(RESULTS / f"speed_profile_{name}.png", found)


if __name__ == "__main__":
    main()
