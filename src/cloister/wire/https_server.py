"""The serving side of `cloister.wire.https`: bounds, threads, and errors as answers."""

import asyncio
import concurrent.futures
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cloister.errors import CloisterError, InputError, ProtocolError
from cloister.wire.bodies import Body, decode, encode
from cloister.wire.https import CONTENT_TYPE, MAX_BODY_BYTES, PREFIX, one_line

try:
    import uvicorn
except ImportError:  # only those who serve need it
    uvicorn = None  # type: ignore[assignment]

HANDLER_THREADS = 32
BODY_TIMEOUT_S = 60.0
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10
QUICK_BYTES = 1 << 16
"""Requests up to this size are read by the event loop itself."""


@dataclass(frozen=True, repr=False)
class Pending:
    """An answer that leaves when `after` has its result; if that is an error, the error leaves."""

    body: Body
    after: concurrent.futures.Future[None]


@dataclass(frozen=True, repr=False)
class Job:
    """The work that a request asks for.

    run      does it, in a thread
    attempt  does it before that, in the event loop, if it takes less than to hand it over and waits
             for nothing; else gives None, having done nothing
    """

    run: Callable[[], Body | Pending]
    attempt: Callable[[], Body | Pending | None] | None = None


Handler = Callable[[str, str | None, Body], Job]
"""(operation, token, request) -> job, without any work yet; raises CloisterError to refuse."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("cloister.https")


class HttpsServer:
    """Serves one handler in background threads until `close`."""

    def __init__(
        self,
        listen: str,
        handler: Handler,
        *,
        certificate: Path,
        private_key: Path,
        max_body_bytes: int = MAX_BODY_BYTES,
        threads: int = HANDLER_THREADS,
    ) -> None:
        """Bind and start; port 0 picks one, see `url`.

        Raises   InputError when the address cannot be used, or the HTTP server is not installed
        """
        if uvicorn is None:
            raise InputError("serving needs uvicorn: pip install 'cloister[serve]'")
        self._socket = _bind(listen)
        host, port = self._socket.getsockname()[:2]
        self.url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "https")
        self._application = _Application(handler, self._pool, max_body_bytes)
        config = uvicorn.Config(
            self._application,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(private_key),
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            interface="asgi3",
            ws="none",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=300,
        )
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="https", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InputError(f"{listen}: the server did not start")
            time.sleep(0.005)

    def close(self) -> None:
        """Answer what is in flight, then stop."""
        self._server.should_exit = True
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._application.in_flight and time.monotonic() < deadline:
            time.sleep(0.005)
        # Idle connections would be waited for: their clients do not listen for a farewell.
        self._server.force_exit = True
        self._thread.join(STOP_TIMEOUT_S)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._socket.close()

    async def _run(self) -> None:
        await self._server.serve([self._socket])
        # They were asked to close, and have nothing left to say.
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class _Application:
    """The ASGI side: bounds, threads, and errors as answers."""

    def __init__(
        self, handler: Handler, pool: concurrent.futures.Executor, max_body_bytes: int
    ) -> None:
        self._handler, self._pool, self._max = handler, pool, max_body_bytes
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.in_flight += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            if scope["method"] != "POST" or not scope["path"].startswith(PREFIX):
                raise ProtocolError("only POST requests to /v1/ are answered")
            data = await self._body(headers, receive)
            operation = scope["path"][len(PREFIX) :]
            answer = await self._handle(operation, _token(headers), data)
            status = 200
        except CloisterError as error:
            status, answer = 400, encode(_refusal(error))
        except TimeoutError:
            status, answer = 408, encode(_refusal(ProtocolError("the request took too long")))
        except Exception:  # noqa: BLE001  (a fault of ours: for the server's log alone)
            _log.exception("a request failed")
            fault = ProtocolError("the server failed on this request; see its log")
            status, answer = 500, encode(_refusal(fault))
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", CONTENT_TYPE.encode()),
                    (b"content-length", str(len(answer)).encode()),
                    # A refused body may not have been read: what follows would be misread.
                    *([] if status == 200 else [(b"connection", b"close")]),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})

    async def _handle(self, operation: str, token: str | None, data: bytearray) -> bytes:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._pool)
        if len(data) <= QUICK_BYTES:
            job = self._handler(operation, token, decode(data))
            found = job.attempt() if job.attempt is not None else None
            answer, after = _ready(found) if found else await in_thread(lambda: _ready(job.run()))
        else:
            answer, after = await in_thread(
                lambda: _ready(self._handler(operation, token, decode(data)).run())
            )
        if after is not None:
            await asyncio.wrap_future(after)
        return answer

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytearray:
        if headers.get(b"content-type", b"").decode("latin-1") != CONTENT_TYPE:
            raise ProtocolError(f"the content type must be {CONTENT_TYPE}")
        stated = headers.get(b"content-length", b"").decode("latin-1")
        if not re.fullmatch("[0-9]{1,20}", stated) or int(stated) > self._max:
            raise ProtocolError(f"a length of the body up to {self._max} B must be stated")
        data = bytearray()
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise ProtocolError("the client left")
                data += event.get("body", b"")
                if len(data) > int(stated):
                    raise ProtocolError("the body is longer than stated")
                if not event.get("more_body", False):
                    break
        if len(data) != int(stated):
            raise ProtocolError("the body is shorter than stated")
        return data


def _ready(found: Body | Pending) -> tuple[bytes, concurrent.futures.Future[None] | None]:
    """The bytes of an answer, and what they have to wait for."""
    if isinstance(found, Pending):
        return encode(found.body), found.after
    return encode(found), None


def _refusal(error: CloisterError) -> Body:
    return Body({"error": type(error).__name__, "message": one_line(str(error))})


def _token(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token if scheme == "Bearer" and token else None


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
        bound.bind(address)
        bound.listen(256)
    except OSError as error:
        bound.close()
        raise InputError(f"{listen}: cannot be listened on ({error.strerror})") from None
    return bound
