"""`python -m amk` is the `amk` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
