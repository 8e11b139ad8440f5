"""Commands of `cloister` as processes of their own, as the parties of a demonstration run them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile

from cloister.errors import CloisterError, VerificationError, printable
from cloister.wire import process

STOP_S, REFUSED_S = 10.0, 300.0
ERROR = "error: "


def command(*arguments: object) -> list[str]:
    """A command for a new process; paths in it are absolute."""
    return process.python("-m", "cloister", *map(str, arguments))


def cloister(*arguments: object) -> str:
    """The output of one command.

    Raises   CloisterError with its message when it fails
    """
    done = process.run(command(*arguments))
    if done.returncode:
        raise CloisterError(f"cloister {arguments[0]}: {_last_line(done.stderr)}")
    return done.stdout.decode()


def refused(*arguments: object) -> str:
    """The message of a command that must be refused.

    Raises   VerificationError when it is not, as by a service that begins to serve, or by a crash
    """
    with suppress(subprocess.TimeoutExpired):
        done = process.run(command(*arguments), timeout_s=REFUSED_S)
        line = _last_line(done.stderr)
        if done.returncode and line.startswith(ERROR):
            return line.removeprefix(ERROR)
    raise VerificationError(f"cloister {arguments[0]} was not refused: do not use this build")


@contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """A serving command; gives its URL once it serves, and stops it at the end.

    Raises   CloisterError with its message when it does not start
    """
    with (
        TemporaryFile() as said,
        process.start(command(*arguments), stdout=subprocess.PIPE, stderr=said.fileno()) as server,
    ):
        try:
            line = server.stdout.readline().decode() if server.stdout else ""
            if "https://" not in line:
                server.wait(STOP_S)
                said.seek(0)
                raise CloisterError(f"cloister {arguments[0]}: {_last_line(said.read())}")
            yield line.split()[-1]
        finally:
            server.terminate()
            server.wait()


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return printable(lines[-1] if lines else "it failed without a message")
