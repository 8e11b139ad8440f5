"""What a round trip to a worker costs, without the work: each link, 1 KiB to 64 MiB.

The worker sends every message back. A round trip is: write the message once where the link wants
it, submit, receive, read the answer once, release; so memory that is shared and memory that is
copied are compared by what a trusted runtime would see. The shared-memory and gRPC workers are
processes of their own; the one of the in-process link is a function behind the wire format.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import typer

from benchmarks import options, python
from benchmarks.environment import environment
from cloister.cli.timing import Timing, interleaved
from cloister.errors import InputError, WorkerUnavailable
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.link import WorkerLink
from cloister.wire.messages import (
    PROTOCOL_VERSION,
    Answer,
    Apply,
    Hello,
    Message,
    TensorSpec,
    Welcome,
)
from cloister.wire.process import start
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.grpc_server import Client, Server
from cloister.worker.shm_server import serve_descriptor

KINDS = ("in process", "shared memory", "gRPC")
SMALLEST, LARGEST = 1 << 10, 64 << 20
COMMAND = tuple(python("transport"))
TIMEOUT_S = 60.0
STOP_S = 5.0


def measure(
    repeats: options.Repeats = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.001, help="About how long one turn lasts.")
    ] = 0.1,
    largest: Annotated[
        int, typer.Option("--largest", min=SMALLEST, help="Largest message in bytes.")
    ] = LARGEST,
) -> dict[str, object]:
    """The message there, the same bytes back; medians."""
    sizes = [1 << e for e in range(10, 27, 2) if 1 << e <= largest]
    with echo_links() as links:
        rows = [row for nbytes in sizes for row in _size(links, nbytes, repeats, seconds)]
    return {"repeats": repeats, "links": rows, **environment()}


def _size(
    links: dict[str, WorkerLink], nbytes: int, repeats: int, seconds: float
) -> list[dict[str, object]]:
    """All links at one size of message, by turns; medians."""
    trips = {name: RoundTrips(link, nbytes) for name, link in links.items()}
    for trip in trips.values():
        trip.calibrate(seconds)
    timings = interleaved(trips, repeats=repeats)
    return [_row(name, nbytes, trips[name].count, timings[name]) for name in links]


def _row(name: str, nbytes: int, count: int, timing: Timing) -> dict[str, object]:
    one_s = timing.wall_s / count
    return {
        "link": name,
        "message_bytes": nbytes,
        "round_trip_us": 1e6 * one_s,
        "round_trips_per_s": 1 / one_s,
        "gb_per_s": 2 * nbytes / one_s / 1e9,
        "trusted_cpu_us": 1e6 * timing.cpu_s / count,
        "spread": timing.wall_spread,
    }


class RoundTrips:
    """`count` round trips of messages of one size over a link, at every call."""

    _last_id = 0

    def __init__(self, link: WorkerLink, nbytes: int) -> None:
        self.count = 1
        self._link = link
        self._spec = TensorSpec(np.dtype(np.uint32), (nbytes // 4,))
        self._source = np.arange(nbytes // 4, dtype=np.uint32)
        self._sink = np.empty_like(self._source)

    def __call__(self) -> None:
        """Go there and back.

        Raises   WorkerUnavailable when something else comes back
        """
        for _ in range(self.count):
            RoundTrips._last_id += 1
            request_id = RoundTrips._last_id
            message = self._link.send_buffer(self._spec)
            np.copyto(message, self._source)
            self._link.submit(request_id, 0, (message,), (self._spec,))
            (answer,) = self._link.receive(request_id, timeout_s=TIMEOUT_S)
            np.copyto(self._sink, answer.expose_unchecked())
            self._link.release(request_id)
        if not np.array_equal(self._sink, self._source):
            raise WorkerUnavailable(f"worker {self._link.name}: it did not send back what it got")

    def calibrate(self, seconds: float) -> None:
        """Choose the count that takes about this long; also the warm-up."""
        self()
        started = time.perf_counter()
        self()
        one = max(time.perf_counter() - started, 1e-6)
        self.count = max(1, int(seconds / one))


@contextmanager
def echo_links() -> Iterator[dict[str, WorkerLink]]:
    """One link of each kind to a worker that echoes."""
    links: dict[str, WorkerLink] = {KINDS[0]: InProcessLink(echo)}
    server = start([*COMMAND, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE)
    try:
        links[KINDS[1]] = start_local_worker(command=COMMAND)
        address = server.stdout.readline().decode().strip() if server.stdout else ""
        if not address:
            raise WorkerUnavailable("the echoing gRPC worker did not start")
        links[KINDS[2]] = RpcLink(address)
        yield links
    finally:
        for link in links.values():
            link.close()
        server.terminate()
        server.communicate(timeout=STOP_S)


def echo(message: Message) -> Message | None:
    """A worker that sends every message back.

    Raises   InputError for anything else than a greeting or a request
    """
    match message:
        case Hello():
            return Welcome(PROTOCOL_VERSION, "echo", "none")
        case Apply(request_id, _, tensors):
            return Answer(request_id, tensors)
        case _:
            raise InputError(f"the echo takes no {type(message).__name__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The echoing worker's process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--listen")
    # Every worker is started with these.
    parser.add_argument("--device")
    parser.add_argument("--threads")
    given = parser.parse_args(arguments)
    if given.fd is not None:
        serve_descriptor(given.fd, echo)
        return 0
    server = Server(given.listen, new_client=_client)
    sys.stdout.write(f"{server.address}\n")
    sys.stdout.flush()
    server.wait()
    return 0


def _client() -> Client:
    return Client(echo, close=_keep_nothing)


def _keep_nothing() -> None:
    """An echo has nothing to let go of."""


if __name__ == "__main__":
    sys.exit(main())
