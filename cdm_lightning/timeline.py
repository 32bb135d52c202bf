"""The events of a continual experiment: sources arrive one by one, and some leave again."""

from collections.abc import Sequence
from dataclasses import dataclass

from cdm_lightning.errors import BadInput, did_you_mean

EXPECTED = "expected STEP:SOURCE, such as 3:cat for: cat leaves after the third source has arrived"


@dataclass(frozen=True)
class Event:
    """One event, after which the composed model is measured.

    Attributes:
        task: how many sources have arrived so far.
        arrives: the source that arrives; None if sources leave.
        leave: the sources that leave.
        present: the sources that are there afterwards, in the order of their arrival.
    """

    task: int
    arrives: str | None
    leave: tuple[str, ...]
    present: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the event in short: `+ cat`, or `- cat, dog`."""
        return f"- {', '.join(self.leave)}" if self.arrives is None else f"+ {self.arrives}"


def timeline(order: Sequence[str], forget_at: Sequence[str]) -> list[Event]:
    """Return the events in their order.

    Args:
        order: sources as they arrive, one per task.
        forget_at: who leaves when, STEP:SOURCE each: after the task of that number, counted from 1.

    Raises:
        BadInput: no source, one twice, or a departure of a source that is not there then, or after which none is left.
    """
    if not order:
        raise BadInput("--order names no source: expected a list such as '[cat, dog, horse]'")
    for source in order:
        if list(order).count(source) > 1:
            raise BadInput(f"source '{source}' is in --order {list(order).count(source)} times: a source arrives once")
    departures = [_departure(text, order) for text in forget_at]
    events: list[Event] = []
    present: tuple[str, ...] = ()
    for task, source in enumerate(order, start=1):
        present = (*present, source)
        events.append(Event(task, source, (), present))
        leave = tuple(source for step, source in departures if step == task)
        if leave:
            _check_leave(leave, present, task)
            present = tuple(one for one in present if one not in leave)
            events.append(Event(task, None, leave, present))
    return events


def _departure(text: str, order: Sequence[str]) -> tuple[int, str]:
    step, colon, source = (part.strip() for part in text.partition(":"))
    if not (colon and source and step.isdecimal()):
        raise BadInput(f"--forget-at has '{text}': {EXPECTED}")
    if source not in order:
        known = ", ".join(order)
        raise BadInput(f"--forget-at {text}: '{source}' is not in --order, {known}{did_you_mean(source, order)}")
    if not 1 <= int(step) <= len(order):
        raise BadInput(f"--forget-at {text}: there is no step {step}; --order has the steps 1 to {len(order)}")
    return int(step), source


def _check_leave(leave: Sequence[str], present: Sequence[str], task: int) -> None:
    for source in leave:
        if source not in present or list(leave).count(source) > 1:
            raise BadInput(
                f"--forget-at {task}:{source}: '{source}' is not there then, or leaves twice; after step {task} there "
                f"are {', '.join(present)}"
            )
    if set(leave) == set(present):
        raise BadInput(f"--forget-at {task}: no source would be left in the model; keep one of {', '.join(present)}")
