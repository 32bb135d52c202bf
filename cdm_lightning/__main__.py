"""`python -m cdm_lightning COMMAND`."""

import sys

from cdm_lightning.cli import main


def run() -> None:
    """Run the command line and exit."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
