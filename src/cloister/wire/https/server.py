"""The serving side of `cloister.wire.https`: a socket, its event loop, and its threads."""

import asyncio
import concurrent.futures
import errno
import socket
import ssl
import threading
from functools import partial
from pathlib import Path
from typing import Any

from cloister.errors import InputError
from cloister.wire.https.admission import Crowd, QuietLog, ServerLimits, Shares, descriptors
from cloister.wire.https.connection import Admit, Connection, House, described

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
READER_THREADS = 2
SHARE = 8
"""A lane has at most this part of the threads."""
FULL_PAUSE_S = 0.1
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class HttpsServer:
    """Serves callers in background threads until `close`."""

    def __init__(
        self,
        listen: str,
        admit: Admit,
        *,
        certificate: Path,
        private_key: Path,
        limits: ServerLimits | None = None,
    ) -> None:
        """Bind and start; port 0 picks one, see `url`.

        Raises   InputError when the address or the certificate cannot be used
        """
        limits = (limits or ServerLimits()).within(descriptors())
        self._context = _context(certificate, private_key)
        self._socket = _bind(listen)
        host, port = self._socket.getsockname()[:2]
        self.url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._house = House(
            admit=admit,
            limits=limits,
            crowd=Crowd(limits),
            bodies=Shares(
                limits.body_bytes, limits.body_bytes // limits.per_share, wait_s=limits.wait_s
            ),
            memory=Shares(
                limits.memory_bytes, limits.memory_bytes // limits.per_share, wait_s=limits.wait_s
            ),
            turns=Shares(limits.threads, max(1, limits.threads // SHARE), wait_s=limits.wait_s),
            workers=concurrent.futures.ThreadPoolExecutor(limits.threads, "https"),
            readers=concurrent.futures.ThreadPoolExecutor(READER_THREADS, "https-reader"),
            log=QuietLog(),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="https", daemon=True
        )
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise InputError(f"{listen}: the server did not start")

    def close(self) -> None:
        """Answer what is in flight, then stop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2 * STOP_TIMEOUT_S)
        self._house.workers.shutdown(wait=True, cancel_futures=True)
        self._house.readers.shutdown(wait=True, cancel_futures=True)
        self._socket.close()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._note)
        accepting = self._loop.create_task(self._accept())
        self._started.set()
        await self._stop.wait()
        accepting.cancel()
        # Those between two requests have nothing left to say.
        for connection in [one for one in self._connections if one.idle]:
            connection.drop()
        for _ in range(2):
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=STOP_TIMEOUT_S)
            for connection in self._connections:
                connection.drop()
        # Transports close their sockets in the loop's next turns.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _accept(self) -> None:
        while True:
            try:
                sock, address = await self._loop.sock_accept(self._socket)
            except OSError as error:
                if error.errno in _FULL:
                    self._house.log.line(f"a connection cannot be accepted: {error.strerror}")
                    self._house.crowd.shed()
                await asyncio.sleep(FULL_PAUSE_S)
                continue
            sock.setblocking(False)
            connection = Connection(self._house, sock)
            self._house.crowd.arrived(connection, address[0])
            self._connections.add(connection)
            task = connection.start(self._context)
            self._tasks.add(task)
            task.add_done_callback(partial(self._leave, connection))

    def _leave(self, connection: Connection, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._connections.discard(connection)
        connection.end()

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log, without a traceback, a fault that asyncio reports."""
        error = context.get("exception")
        fault = described(error) if isinstance(error, Exception) else str(context.get("message"))
        self._house.log.line(f"the server's event loop: {fault}")


def _context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, private_key)
    except OSError as error:
        raise InputError(
            f"{certificate}, {private_key}: cannot be used ({error.strerror or error})"
        ) from None
    return context


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise InputError(f"{listen}: give the address as HOST:PORT")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"{listen}: {getattr(error, 'strerror', None) or error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
        bound.listen(256)
    except OSError as error:
        bound.close()
        raise InputError(f"{listen}: cannot be listened on ({error.strerror})") from None
    return bound
