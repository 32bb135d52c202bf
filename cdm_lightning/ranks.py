"""Which of several training processes this is: only the first one writes; the others keep in step."""

import os

import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process is the only one, or the first of several."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def share_threads(processes: int) -> None:
    """Give this process its part of the threads, unless OMP_NUM_THREADS says how many: as Lightning does, but at once.

    Lightning does so at the first training, and cards name the number of threads: they would differ before and after.
    """
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def wait_for_all() -> None:
    """Wait until every process of the training is here; at once if there is only one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
