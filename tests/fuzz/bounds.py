"""One hostile case under bounds: the library's own errors, little time, little memory."""

import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cloister.errors import MAX_TEXT_CHARS, CloisterError

MAX_S = 1.0
"""Of processor time: what a busy machine takes beside it is not the case's."""
HUNG_S = 20.0
MAX_BYTES = 200 * 2**20
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class FindingError(AssertionError):
    """A case did what none may do; `kind` is the same for all findings of one cause."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class _Hung(BaseException):
    """No exception of Python's, so nothing but `judge` catches it."""


def judge(run: Callable[[], object]) -> bool:
    """Whether a case was accepted; one of the library's errors refuses it.

    Raises   FindingError for another error, more than a second, or more than 200 MB
    """
    before, began = _resident_after_reset(), time.process_time()
    accepted = _accepted(run)
    took = time.process_time() - began
    if took > MAX_S:
        raise FindingError("slow", f"{took:.1f} s of processor time")
    if (grown := _peak() - before) > MAX_BYTES:
        raise FindingError("large", f"{grown >> 20} MB more at the peak")
    return accepted


def _accepted(run: Callable[[], object]) -> bool:
    def stop(*_: object) -> None:
        raise _Hung

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HUNG_S)
    try:
        run()
    except CloisterError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > MAX_TEXT_CHARS:
            kind = f"text of {type(error).__name__}"
            raise FindingError(kind, f"{len(text)} characters: {text[:200]!r}") from error
        return False
    except (FindingError, KeyboardInterrupt):
        raise
    except _Hung as error:
        raise FindingError(f"hung {_place(error)}", f"more than {HUNG_S:.0f} s") from error
    except BaseException as error:
        raise FindingError(f"{type(error).__name__} {_place(error)}", str(error)[:300]) from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    return True


def _place(error: BaseException) -> str:
    """The last line of the library's own code that an error came through."""
    place, step = "?", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "cloister" in code.co_filename or place == "?":
            place = f"{Path(code.co_filename).name}:{code.co_name}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _resident_after_reset() -> int:
    """Resident memory, and let the kernel count the peak anew."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _peak()


def _peak() -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
