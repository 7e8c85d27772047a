"""`python -m multitask.compare RUN RUN …`: another name of `multitask.cli.compare`."""

import sys

from .cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
