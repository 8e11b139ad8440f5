"""A service in the foreground, until it is interrupted."""

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Protocol

from cloister.cli.console import err, out


class Service(Protocol):
    """Serves in the background, at an address."""

    url: str

    def close(self) -> None:
        """Stop."""
        ...


def serve_until_interrupted(start: Callable[[], Service], name: str, *lines: str) -> None:
    """Start a service, say where it is, and close it at SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.closing(start()) as server:
        console = out()
        for line in (f"{name}: serving on {server.url}", *lines):
            console.print(line)
        console.file.flush()
        stop.wait()
    err().print(f"{name}: stopped")
