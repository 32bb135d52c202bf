"""What sampling costs: seconds, measured in turns with another model, and memory, in a process of its own."""

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from cdm_lightning.allocator import keep_freed_memory
from cdm_lightning.contenders import Contender, Opened
from cdm_lightning.generation import Settings, sample_batch

TURNS = 3
STATUS = Path("/proc/self/status")


def seconds_in_turns(one: Opened, other: Opened, settings: Settings) -> tuple[float, float]:
    """Return seconds per image of one model, and how many times those of another one they are.

    Both sample the run's largest batch in turns, so that what else the machine does slows both alike; medians over
    turns. Everything counts that happens between noise and image: closed forms, weights, network. Of a model whose
    images have classes it is a batch of one class.
    """
    turns = [(_seconds(one, settings), _seconds(other, settings)) for _ in range(TURNS)]
    return statistics.median(mine for mine, _ in turns), statistics.median(mine / others for mine, others in turns)


def _seconds(opened: Opened, settings: Settings) -> float:
    """Return the seconds per image that the largest batch of the run takes."""
    composed, indices = max(opened.batches(settings.n, settings.batch_size), key=lambda batch: len(batch[1]))
    shape, start = opened.compartments.public.closed_form.shape, time.perf_counter()
    images = sample_batch(composed, shape, indices, settings, weigh=False).images
    images.flatten()[:1].cpu()  # waits for the device
    return (time.perf_counter() - start) / len(indices)


def peak_memory(contender: Contender, settings: Settings) -> int | None:
    """Return the most bytes that a process holds which does nothing but open a model and sample one batch from it.

    It is the largest batch of the run. Python and PyTorch are counted, since nothing can be sampled without them. It
    is a new process because memory that was freed may stay with the old one. On a GPU it is the most memory of the
    GPU. None where the system does not say.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_sampling, contender, settings, torch.get_num_threads()).result()


def _peak_of_sampling(contender: Contender, settings: Settings, threads: int) -> int | None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    _seconds(contender.open(settings.device), settings)
    return torch.cuda.max_memory_allocated(settings.device) if settings.device.startswith("cuda") else peak_of_process()


def peak_of_process() -> int | None:
    """Return the most bytes of memory that this process has held so far, as Linux says; None elsewhere.

    Not `ru_maxrss`: a new process inherits that of the one which started it.
    """
    if not STATUS.is_file():
        return None
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[:1] == ["VmHWM:"]), None)
