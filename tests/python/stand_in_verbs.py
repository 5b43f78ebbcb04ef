"""The verb table with stand-ins beside it, as a server and as the child of its jobs: work that is slow, noisy, stubborn
or dies, without a model. `stand_in_verbs.py serve` and `stand_in_verbs.py child FOLDER`."""

import ctypes
import os
import signal
import subprocess
import sys
import time

from amk import cli, verbs
from amk.agent import child
from amk.agent.jobs import JobStore
from amk.agent.server import serve
from amk.verb import Option, Outcome, Tool, Verb

COMMAND = [sys.executable, os.path.abspath(__file__), "child"]
NOISE = b"NOISE that is no protocol\n"


def make_noise() -> None:
    """Every way there is to write to stdout."""
    os.write(1, NOISE)
    print(NOISE.decode())
    libc = ctypes.CDLL(None)
    libc.printf(b"NOISE that stays in a buffer")
    subprocess.run(["sh", "-c", 'echo NOISE of a child; echo \'{"schema": "amk.forged"}\''], check=True)


def work(arguments, say):
    how, steps = arguments.HOW, arguments.steps
    if how == "noise":
        make_noise()
    if how == "stdin":
        return Outcome(0, "OK", {"stdin": os.read(0, 10).decode()})
    if how == "die":
        say(f"child {subprocess.Popen(['sleep', '300']).pid}")
        say("about to die")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "lie":
        leave = os._exit
        os._exit = lambda code: leave(3)  # as one that crashes on its way out
    if how == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        other = subprocess.Popen(["sleep", "300"])
        say(f"child {other.pid}")
        steps = 10_000
    done = 0
    try:
        for done in range(1, steps + 1):
            say(f"step {done}")
            time.sleep(0.05)
            if arguments.until and os.path.exists(arguments.until):
                break
    except KeyboardInterrupt:
        return Outcome(130, "INTERRUPTED", {"steps": list(range(done))})
    return Outcome(0, "OK", {"steps": list(range(done)), "cwd": os.getcwd()})


OPTIONS = (
    Option("HOW", "what it does", choices=("steps", "noise", "stdin", "die", "lie", "stubborn"), required=True),
    Option("--steps", "how many", "int", default=2),
    Option("--until", "a file that ends it"),
    Option("--ratio", "a number that is not used", "float", default=0.5),
    Option("--flag", "a flag that is not used", "flag"),
    Option("--config", "schedule as a JSON file", holds="ScheduleConfig"),
    Option("--json", "one JSON object", "flag"),
    Option("--quiet", "no progress", "flag"),
)
TABLE = (
    *verbs.VERBS,
    Verb(
        "stand-in",
        "work that is no work",
        OPTIONS,
        work,
        (
            Tool("stand_in_start", "Starts it.", read_only=False, idempotent=False, wait_s=0.0, paged=True),
            Tool("stand_in_here", "Answers at once.", hidden=("--steps",), paged=True),
        ),
    ),
)

if __name__ == "__main__":
    cli.VERBS = TABLE
    if sys.argv[1] == "child":
        child.run(sys.argv[2])
    serve(TABLE, JobStore(command=COMMAND))
