"""`python -m multitask.checkpoint list|verify|fetch`: another name of `multitask.cli.checkpoints`."""

import sys

from .cli.checkpoints import main

if __name__ == "__main__":
    sys.exit(main())
