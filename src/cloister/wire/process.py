"""The process of a local worker, and what it gets from this one: little."""

import os
import subprocess
import sys
from collections.abc import Sequence

from cloister.errors import WorkerUnavailable

_PASSED_ON = (
    "PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "LANG",
)


def _environment(threads: int) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed, "OMP_NUM_THREADS": str(threads)}


def start_process(
    descriptors: Sequence[int],
    command: Sequence[str] | None,
    *,
    device: str,
    threads: int,
    poll_us: int = 0,
) -> subprocess.Popen[bytes]:
    """Start a worker that serves these descriptors; see shm.start_local_worker.

    Raises   WorkerUnavailable
    """
    base = list(command) if command else [sys.executable, "-m", "cloister.worker"]
    arguments = [word for one in descriptors for word in ("--fd", str(one))]
    arguments += ["--device", device, "--threads", str(threads)]
    if poll_us:
        arguments += ["--poll-us", str(poll_us)]
    try:
        # In a session of its own, so that Ctrl-C reaches the trusted side alone, which then closes
        # the socket; a worker whose socket is closed ends itself.
        return subprocess.Popen(
            base + arguments,
            pass_fds=list(descriptors),
            stdin=subprocess.DEVNULL,
            # What it prints must not pass for output of the trusted side; nor does it get the
            # environment, which may hold secrets.
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=_environment(threads),
        )
    except OSError as error:
        raise WorkerUnavailable(
            f"local worker: cannot start {base[0]}: {error.strerror}"
        ) from error
