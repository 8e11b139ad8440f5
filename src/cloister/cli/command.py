"""The process of the command `cloister`: loads the command line, then runs it.

Loading takes a second. An interrupt meanwhile ends the process as it does later: without a word.
Python would print where it was, or, from inside a library's own loading, raise something else.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

EXIT_INTERRUPTED = 130
SERVE, RUN, BROKER = ["trusted", "serve"], ["run"], "--broker"


def run() -> int:
    """Run the arguments of the process and return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    # One that is ignored stays ignored: a shell's background jobs.
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    if _proves_itself(sys.argv[1:]):
        importlib.import_module("cloister.attest.runtime_manifest").restart_isolated(sys.argv[1:])
    loaded = importlib.import_module("cloister.cli.main")
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    code: int = loaded.main()
    return code


def _proves_itself(arguments: Sequence[str]) -> bool:
    """Whether the process proves to others how it was started."""
    asked = (one.partition("=")[0] for one in arguments)
    return list(arguments[:2]) == SERVE or (list(arguments[:1]) == RUN and BROKER in asked)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Nothing was begun that would have to end.
    os._exit(EXIT_INTERRUPTED)
