"""The process of one job: `python -m amk.agent.child FOLDER` signs in, then is `amk VERB ... --json`.

In: FOLDER/job.json. Out: on stdout (a file of the folder) the verb's one JSON object, on stderr its progress, and its
exit code. It signs in before it does any work, so that no work is done by a process that nobody can find; a job that
was given up or cancelled by then does nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import NoReturn

from .job_folder import ABANDONED, CANCEL, JOB, PROCESS, write_json
from .processes import identify

__all__ = ["run"]


def run(folder: str) -> NoReturn:
    """Runs the job of a folder and exits with its code."""
    code = 130
    try:
        # A server that was started in the background of a shell passes on an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        me = identify(os.getpid())
        write_json(os.path.join(folder, PROCESS), None if me is None else me.to_dict())
        if not any(os.path.exists(os.path.join(folder, name)) for name in (ABANDONED, CANCEL)):
            with open(os.path.join(folder, JOB), encoding="utf-8") as file:
                argv = json.load(file)["argv"]
            from ..cli import main

            code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code if isinstance(stop.code, int) else 70
    except KeyboardInterrupt:
        print("amk: interrupted", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1])
