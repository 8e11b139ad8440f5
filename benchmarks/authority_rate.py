"""How many function keys an authority issues each second, over HTTPS, each charged and durable.

An authority process holds a data set of 60,000 samples of 784 values; every request asks for a key
that was not issued before: five functionals of one sample, so that every answer waits for a commit
of the ledger. Clients are threads of another process on the same machine, one kept TLS connection
each; they send prepared bytes and do not check answers, so as to take little of the processor.
"""

import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.authority_process import AuthorityProcess, create
from benchmarks.environment import environment
from cloister.authority.authority import Authority
from cloister.authority.records import Terms
from cloister.base.identity import CERTIFICATE_FILE
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.ring.linear import Geometry
from cloister.wire.https.bodies import CONTENT_TYPE, Body, encode

SHAPE, SAMPLES, BUDGET = (28, 28, 1), 60_000, 196
ROWS = 5
GEOMETRY = Geometry((28, 28), 1, (1, 1), ROWS, (28, 28))


class Client(threading.Thread):
    """One connection; asks for every sample of its share once."""

    def __init__(self, ids: np.ndarray, url: str, folder: Path, token: str) -> None:
        super().__init__(daemon=True)
        self.ids, self.token = ids, token
        host, port = url.removeprefix("https://").split(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(folder / CERTIFICATE_FILE)
        self.socket = context.wrap_socket(socket.create_connection((host, int(port))))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.latencies: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        weights = np.random.default_rng(0).integers(-50, 51, GEOMETRY.weight_shape).astype(np.int16)
        fields = {"dataset": "set", "receiver": "server", "geometry": GEOMETRY.to_fields()}
        for sample in self.ids:
            if self.stop.is_set():
                return
            body = encode(Body(fields, (np.array([sample]), weights)))
            head = (
                f"POST /v1/forward HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\n"
                f"Authorization: Bearer {self.token}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            started = time.perf_counter()
            self.socket.sendall(head.encode() + body)
            self.read()
            self.latencies.append(time.perf_counter() - started)

    def read(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.received()
        head, _, rest = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"refused: {rest!r}")
        (length,) = (
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        while len(rest) < length:
            rest += self.received()

    def received(self) -> bytes:
        found = self.socket.recv(1 << 16)
        if not found:
            raise SystemExit("the authority closed the connection")
        return found


def measure(
    seconds: Annotated[float, typer.Option("--seconds", min=0.1)] = 10.0,
    clients: Annotated[int, typer.Option("--clients", min=1)] = 8,
) -> dict[str, object]:
    """Requests per second, and processor time per request."""
    with tempfile.TemporaryDirectory() as place:
        return _measure(seconds, clients, Path(place)) | {"environment": environment()}


def _measure(seconds: float, clients: int, place: Path) -> dict[str, object]:
    folder = place / "authority"
    info = DatasetInfo("set", SHAPE, 10, Encoding(1 / 255, 0.0, 9), 0, BUDGET)
    token = create(folder, info, Terms(), samples=SAMPLES)
    process = AuthorityProcess(folder)
    shares = np.array_split(np.arange(SAMPLES, dtype=np.int64), clients)
    loads = [Client(share, process.url, folder, token) for share in shares]
    began, cpu = time.perf_counter(), time.process_time()
    for load in loads:
        load.start()
    time.sleep(seconds)
    for load in loads:
        load.stop.set()
    for load in loads:
        load.join(30)
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    authority_cpu = process.stop()
    latencies = 1e3 * np.concatenate([load.latencies for load in loads])
    with Authority(folder) as authority:
        charged = int((authority.spent("set").rank == ROWS).sum())
    if charged != len(latencies):
        raise SystemExit(f"{len(latencies)} keys were issued, {charged} are on record")
    return {
        "samples": SAMPLES,
        "clients": clients,
        "requests": len(latencies),
        "requests_per_s": len(latencies) / elapsed,
        "median_ms": float(np.median(latencies)),
        "p99_ms": float(np.quantile(latencies, 0.99)),
        "authority_cpu_ms": 1e3 * authority_cpu / len(latencies),
        "clients_cpu_ms": 1e3 * cpu / len(latencies),
    }
