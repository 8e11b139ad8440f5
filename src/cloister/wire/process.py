"""The one place where a Python process is started, with a listed part of this one's environment.

    folder         the root: a module that lies in the caller's folder is not found there
    search path    `-P`: neither the folder nor a script's own comes first
    environment    what is listed here; the rest may hold secrets, or have code loaded

Paths that are handed over must be absolute.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from cloister.errors import WorkerUnavailable

FOLDER = "/"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PASSED_ON = (
    # Who and where: caches of CUDA and PyTorch lie in the home, temporary files in TMPDIR.
    "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
    # Where packages are, and are not.
    "VIRTUAL_ENV", "PYTHONNOUSERSITE",
    # Which accelerators, and which kernels of NumPy's library.
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "OPENBLAS_CORETYPE",
    # Threads of libraries; a worker's own number replaces them.
    *_THREADS,
)  # fmt: skip
_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Passed on without empty and relative entries: they name the folder that the caller is in."""


def python(*arguments: str) -> list[str]:
    """The command that runs Python on a module (`-m`) or code (`-c`) as this process would."""
    return [sys.executable, "-P", *arguments]


def start_over(*arguments: str) -> NoReturn:
    """Become a process that runs Python with these arguments, and with no environment at all.

    Raises   OSError
    """
    os.execve(sys.executable, [sys.executable, *arguments], {})  # noqa: S606


def environment(**more: str) -> dict[str, str]:
    """The environment of a new process: a listed part of this one's, and more."""
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    for name in _PATHS:
        entries = os.environ.get(name, "").split(os.pathsep)
        kept = [entry for entry in entries if os.path.isabs(entry)]
        if kept:
            given[name] = os.pathsep.join(kept)
    # For the processes that it starts itself.
    return {**given, "PYTHONSAFEPATH": "1", **more}


def thread_settings(threads: int) -> dict[str, str]:
    """The environment in which libraries start so many threads."""
    return dict.fromkeys(_THREADS, str(threads))


def start(
    command: Sequence[str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
    descriptors: Sequence[int] = (),
    detached: bool = False,
    more: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process without standard input.

    detached   in a session of its own, out of reach of the terminal's Ctrl-C
    more       added to its environment

    Raises   OSError
    """
    return subprocess.Popen(
        command,
        cwd=FOLDER,
        env=environment(**(more or {})),
        pass_fds=list(descriptors),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=detached,
    )


def run(
    command: Sequence[str],
    *,
    timeout_s: float | None = None,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a process to its end and keep what it printed; `more` is added to its environment.

    Raises   OSError, subprocess.TimeoutExpired
    """
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, more=more) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def start_worker(
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
    base = list(command) if command else python("-m", "cloister.worker")
    arguments = [word for one in descriptors for word in ("--fd", str(one))]
    arguments += ["--device", device, "--threads", str(threads)]
    if poll_us:
        arguments += ["--poll-us", str(poll_us)]
    try:
        # Ctrl-C reaches the trusted side alone, which then closes the socket; a worker whose socket
        # is closed ends itself. What it prints must not pass for output of the trusted side.
        return start(
            base + arguments,
            stdout=subprocess.DEVNULL,
            descriptors=descriptors,
            detached=True,
            more=thread_settings(threads),
        )
    except OSError as error:
        raise WorkerUnavailable(
            f"local worker: cannot start {base[0]}: {error.strerror}"
        ) from error
