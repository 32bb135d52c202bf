"""Which of several training processes this is: only the first one writes; the others keep in step."""

import torch.distributed
from lightning.pytorch.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process is the only one, or the first of several."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def wait_for_all() -> None:
    """Wait until every process of the training is here; at once if there is only one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
