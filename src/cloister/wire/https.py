"""Strict messages over HTTPS between parties that know each other's key.

The server shows one self-signed certificate; the client trusts this certificate and no other, by
whatever name or address it is reached. Who calls is told by a bearer token. Bodies are those of
`cloister.wire.bodies`, of a stated length that is compared with a limit before it is read. Errors
of this library cross the wire by class; anything else that goes wrong is only logged on the
server's side.

Requests must be such that repeating one does no harm: a client whose connection was lost cannot
know whether it was carried out, and asks again.
"""

import asyncio
import concurrent.futures
import hashlib
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cloister import errors
from cloister.errors import AuthorityUnavailable, CloisterError, InputError, ProtocolError
from cloister.wire.bodies import Body, decode, encode

try:
    import uvicorn
except ImportError:  # only those who serve need it
    uvicorn = None  # type: ignore[assignment]

CONTENT_TYPE = "application/octet-stream"
PREFIX = "/v1/"
MAX_BODY_BYTES = 1 << 30
HANDLER_THREADS = 32
BODY_TIMEOUT_S = 60.0
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
RETRY_FOR_S = 20.0
MAX_MESSAGE_CHARS = 600

Handler = Callable[[str, str | None, Body], Body]
"""(operation, token, request) -> answer; called in a thread, raises CloisterError to refuse."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("cloister.https")

# Errors that may cross the wire, by name.
_ERRORS: dict[str, type[CloisterError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CloisterError)
}


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
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(
                self._pool, self._handle, operation, _token(headers), data
            )
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

    def _handle(self, operation: str, token: str | None, data: bytearray) -> bytes:
        return encode(self._handler(operation, token, decode(data)))

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytearray:
        if headers.get(b"content-type", b"").decode("latin-1") != CONTENT_TYPE:
            raise ProtocolError(f"the content type must be {CONTENT_TYPE}")
        stated = headers.get(b"content-length", b"").decode("latin-1")
        if not (stated.isascii() and stated.isdecimal()) or int(stated[:20]) > self._max:
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


class HttpsClient:
    """Calls a server whose certificate is known; one kept connection, shared under a lock."""

    def __init__(
        self,
        url: str,
        *,
        certificate: bytes,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """Prepare to call; `certificate` in DER, pinned.

        Raises   InputError when the address is not one
        """
        self._url = url
        self._host, self._port = _address(url)
        self._pin = hashlib.sha256(certificate).digest()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False  # the pinned certificate is the name
        self._context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
        self._headers = {"Content-Type": CONTENT_TYPE}
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise InputError("the token holds characters that no token has")
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s
        self._max = max_body_bytes
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None

    def call(
        self, operation: str, fields: Mapping[str, Any], tensors: Sequence[np.ndarray] = ()
    ) -> Body:
        """Ask, and ask again while the connection is lost.

        Raises   what the server raised, by class; AuthorityUnavailable when it cannot be reached;
                 ProtocolError when its answer is not one
        """
        request = encode(Body(fields, tuple(tensors)))
        deadline, delay = time.monotonic() + self._retry_for_s, 0.05
        with self._lock:
            while True:
                try:
                    status, answer = self._once(operation, request)
                    break
                except ssl.SSLCertVerificationError:
                    self._drop()
                    raise AuthorityUnavailable(
                        f"{self._url}: shows another certificate than the given public file; "
                        "check the address and the file"
                    ) from None
                except (OSError, http.client.HTTPException) as error:
                    self._drop()
                    if time.monotonic() + delay > deadline:
                        raise AuthorityUnavailable(
                            f"{self._url}: cannot be reached ({_why(error)}); "
                            "is it running? Ask again when it is"
                        ) from None
                    time.sleep(delay)
                    delay = min(2 * delay, 2.0)
                except BaseException:
                    self._drop()
                    raise
        body = decode(answer)
        if status == 200:
            return body
        kind = _ERRORS.get(body.text("error"), ProtocolError)
        raise kind(_one_line(body.text("message")))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _once(self, operation: str, request: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            connection = http.client.HTTPSConnection(
                self._host,
                self._port,
                timeout=min(CONNECT_TIMEOUT_S, self._timeout_s),
                context=self._context,
            )
            self._connection = connection
            connection.connect()
            self._check_pin(connection.sock)
            connection.sock.settimeout(self._timeout_s)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.request("POST", PREFIX + operation, request, self._headers)
        response = self._connection.getresponse()
        length = response.length
        if length is None or length > self._max:
            self._drop()
            raise ProtocolError(f"{self._url}: answered without a length, or beyond {self._max} B")
        answer = response.read()
        if response.getheader("Content-Type") != CONTENT_TYPE:
            self._drop()
            raise ProtocolError(f"{self._url}: is no Cloister service")
        return response.status, answer

    def _check_pin(self, sock: ssl.SSLSocket) -> None:
        shown = sock.getpeercert(binary_form=True) or b""
        if hashlib.sha256(shown).digest() != self._pin:
            raise ssl.SSLCertVerificationError("not the pinned certificate")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _refusal(error: CloisterError) -> Body:
    return Body({"error": type(error).__name__, "message": _one_line(str(error))})


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_MESSAGE_CHARS]


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return _one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _token(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token if scheme == "Bearer" and token else None


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "https" or not host or port is None or parts.path not in ("", "/"):
        raise InputError(f"{url}: give the address as https://HOST:PORT")
    return host, port


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
