"""`python -m amk` and the `amk` script: the command's exit code, also when Ctrl-C comes at a bad moment."""

import os
import sys
from typing import NoReturn

__all__ = ["run"]


def run() -> NoReturn:
    """Runs the command. An interrupt exits with 130 wherever it strikes, while modules are still imported too."""
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:
        print("amk: interrupted", file=sys.stderr)
        code = 130
    if code == 130:
        # CPython ends `python -m` by SIGINT, whatever its exit code, if the interrupt came while it ran a string
        # (dataclasses and namedtuples are made from strings), even though the exception was caught.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
