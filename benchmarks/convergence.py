"""How long a compartment is trained until its held-out error is nearly as low as it gets: a curve, and a point on it.

A fit's learning rate falls in the second half of its steps, so its error is lowest at the end, whatever their number.
Here the rate stays constant after a warm-up, so that the curve does not know its budget; all else is as in a fit, and
what is measured is the running average that a fit would store.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cdm_lightning.evaluation import SIGMAS, heldout_error
from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.fitting import fit_source
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.phase import Phase
from cdm_lightning.store import Store

WARM_UP = 20  # steps
NEAR = 0.01  # how much more than the least error is near it


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Attributes:
        step: training steps so far.
        seconds: of CPU since the fit began, closed forms and drafts included, measuring not; so what else the machine
            does counts little.
        error: geometric mean over the noise levels of the mean square error on held-out images.
    """

    step: int
    seconds: float
    error: float


def first_near_best(points: Sequence[Point], near: float = NEAR) -> Point:
    """Return the first point whose error is at most 1 + `near` times the least error of the curve."""
    bound = (1 + near) * min(point.error for point in points)
    return next(point for point in points if point.error <= bound)


def compared(part: Sequence[Point], monolith: Sequence[Point], parts: int, batch: int) -> list[dict[str, Any]]:
    """Return where each curve is near its best, and what share of the monolith's cost the part's is: a row per budget.

    The budgets are half of the monolith's steps and all of them; the part's are one `parts`-th of either, so both see
    their own images as often.

    Args:
        part: the curve of one of `parts` equal parts.
        monolith: the curve of all images.
        parts: how many there are.
        batch: images of a step.
    """
    rows = []
    for budget in (monolith[-1].step // 2, monolith[-1].step):
        own, whole = (
            first_near_best([point for point in points if point.step * times <= budget])
            for points, times in ((part, parts), (monolith, 1))
        )
        shares = {"images_ratio": own.step / whole.step, "seconds_ratio": own.seconds / whole.seconds}
        rows.append({"part": _near(own, budget // parts, batch), "monolith": _near(whole, budget, batch), **shares})
    return rows


def _near(point: Point, budget: int, batch: int) -> dict[str, Any]:
    return asdict(point) | {"images": point.step * batch, "budget": budget}


def mean_error(errors: Sequence[float]) -> float:
    """Return the geometric mean of positive errors, in which each noise level weighs alike."""
    return exp(sum(map(log, errors)) / len(errors))


class Watch(Callback):
    """Measures every so many steps, from before the first one.

    Args:
        error: of a denoiser (x, sigma) -> denoised.
        every: steps between points.
    """

    def __init__(self, error: Callable[[Callable[[Tensor, Tensor], Tensor]], float], every: int) -> None:
        self.error, self.every = error, every
        self.points: list[Point] = []
        self.begun, self.measuring = time.process_time(), 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the start."""
        self._measure(trainer.global_step, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure, if it is time."""
        if trainer.global_step % self.every == 0:
            self._measure(trainer.global_step, pl_module)

    def seconds_until(self, now: float) -> float:
        """Return the seconds of CPU from the beginning until `now`, but for those of measuring."""
        return round(now - self.begun - self.measuring, 3)

    def _measure(self, step: int, module: LightningModule) -> None:
        assert isinstance(module, CompartmentalizedDiffusion)
        assert module.ema is not None
        start = time.process_time()
        module.ema.swap()
        error = self.error(module.denoisers()[module.phase.source])
        module.ema.swap()
        self.points.append(Point(step, self.seconds_until(start), error))
        self.measuring += time.process_time() - start
        print(self.points[-1], flush=True)


class Steady(CompartmentalizedDiffusion):
    """The module of a fit, but for the learning rate, which does not fall."""

    def configure_optimizers(self) -> Any:
        """Return the optimizer of a fit with a rate that is constant after the warm-up."""
        made: Any = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(made["optimizer"], lambda step: min(1.0, (step + 1) / WARM_UP))
        return {"optimizer": made["optimizer"], "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SteadyRecipe(ConfiguredRecipe):
    """The recipe of a fit that is watched."""

    def __init__(self, config: Namespace, watch: Watch) -> None:
        super().__init__(fit_parser(), config)
        self.watch = watch

    def module(self) -> CompartmentalizedDiffusion:
        """Return a new module."""
        return Steady(**vars(self.parser.instantiate(self.config).model), seed=self.config.seed)

    def trainer(self, phase: Phase, folder: Path, max_steps: int) -> Trainer:
        """Return a new Trainer that also measures."""
        trainer = super().trainer(phase, folder, max_steps)
        trainer.callbacks.append(self.watch)  # type: ignore[attr-defined]
        return trainer


def curve(arguments: Sequence[str], source: str, held_out: Tensor, every: int) -> list[Point]:
    """Fit a source into a store that has a backbone, and return its curve; a source that is there is fitted again.

    Args:
        arguments: of `fit`; their `trainer.max_steps` are the budget.
        source: the source.
        held_out: x_0 [n, channel, height, width] in [-1, 1].
        every: steps between points.
    """
    config = fit_parser().parse_args(list(arguments))
    levels = [sigma for sigma in SIGMAS if sigma < float(config.model.sigma_switch)]  # above them nothing is trained
    watch = Watch(lambda denoise: mean_error(heldout_error(denoise, held_out, levels)), every)
    store = Store.create(Path(config.store))
    fit_source(SteadyRecipe(config, watch), store, Phase("source", source, 1, 1), refit=True)
    return watch.points
