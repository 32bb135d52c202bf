"""`python -m cdm_lightning COMMAND`."""

import os
import sys
from io import TextIOWrapper

from cdm_lightning.allocator import keep_freed_memory
from cdm_lightning.cli import main


def run() -> None:
    """Run the command line and exit; if whoever reads its output stops, as `head` does, so does it, without a word."""
    keep_freed_memory()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    run()
