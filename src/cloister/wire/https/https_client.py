"""The client of strict messages over HTTPS between parties that know each other's key.

The server shows one self-signed certificate; the client trusts this certificate and no other, by
whatever name or address it is reached. A bearer token identifies the caller. Bodies are those of
`cloister.wire.https.bodies`, of a stated length. The server compares the token first, then the
length with a limit, before it reads a byte of the body. Errors of this library cross the wire by
class; anything else that goes wrong is only logged on the server's side.

Requests must be such that repeating one does no harm: a client whose connection was lost cannot
know whether it was carried out, and asks again.
"""

import contextlib
import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cloister.errors import InputError, ProtocolError, ServiceUnavailable
from cloister.wire.https.bodies import CONTENT_TYPE, PREFIX, Body, decode, encode
from cloister.wire.https.error_bodies import error_of

MAX_ANSWER_BYTES = 1 << 30
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
RETRY_FOR_S = 20.0
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Seconds and probes until a machine counts as gone that does not even say that it is."""
BUSY = 503
BUSY_PAUSE_S = 1.0


@dataclass(frozen=True)
class CertificateDigest:
    """SHA-256 of a server's certificate, where the certificate itself is not at hand.

    Raises   InputError
    """

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != hashlib.sha256().digest_size:
            raise InputError(f"certificate: its SHA-256 has 32 bytes, not {len(self.value)}")


class InsecureAnyCertificate:
    """Accept whatever certificate a server shows: TLS then protects nothing.

    For attested sessions alone: they seal every message to a machine that has proved itself, so a
    proxy that ends the TLS connection reads none.
    """


class HttpsClient:
    """Calls a server whose certificate is known; one kept connection, shared under a lock."""

    def __init__(
        self,
        url: str,
        *,
        certificate: bytes | CertificateDigest | InsecureAnyCertificate,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        unavailable: type[ServiceUnavailable] = ServiceUnavailable,
    ) -> None:
        """Prepare to call; nothing is sent yet.

        certificate   in DER, or its digest: pinned; or any
        unavailable   the class of this service's errors when it cannot be reached or is busy
        Raises   InputError when the address is not one
        """
        self._url = url
        self._host, self._port = _address(url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False  # the pinned certificate is the name
        self._pin: bytes | None
        if isinstance(certificate, bytes):
            self._context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
            self._pin = hashlib.sha256(certificate).digest()
        else:
            # The library compares names and issuers alone; `_check_pin` compares the digest.
            self._context.verify_mode = ssl.CERT_NONE
            self._pin = certificate.value if isinstance(certificate, CertificateDigest) else None
        self._headers = {"Content-Type": CONTENT_TYPE}
        if token is not None:
            self.show(token)
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s
        self._max, self._unavailable = max_answer_bytes, unavailable
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None

    def show(self, token: str) -> None:
        """Show this token from the next request on.

        Raises   InputError
        """
        if not (token.isascii() and token.isprintable()):
            raise InputError("the token holds characters that no token has")
        self._headers["Authorization"] = f"Bearer {token}"

    def call(
        self,
        operation: str,
        fields: Mapping[str, Any],
        tensors: Sequence[np.ndarray] = (),
        *,
        retry_for_s: float | None = None,
        max_answer_bytes: int | None = None,
    ) -> Body:
        """Ask, and ask again while the connection is lost or the server is busy.

        retry_for_s, max_answer_bytes   others than those of this client

        Raises   what the server raised, by class; `unavailable` when it cannot be reached or is
                 busy; ProtocolError when its answer is not one
        """
        request = encode(Body(fields, tuple(tensors)))
        again_s = self._retry_for_s if retry_for_s is None else retry_for_s
        deadline, delay = time.monotonic() + again_s, 0.05
        most = self._max if max_answer_bytes is None else max_answer_bytes
        with self._lock:
            while True:
                try:
                    status, answer = self._once(operation, request, most)
                    if status != BUSY or time.monotonic() + BUSY_PAUSE_S > deadline:
                        break
                    time.sleep(BUSY_PAUSE_S)
                except ssl.SSLCertVerificationError:
                    self._drop()
                    raise self._unavailable(
                        f"{self._url}: shows another certificate than the given file; "
                        "check the address and the file"
                    ) from None
                except (OSError, http.client.HTTPException) as error:
                    self._drop()
                    if time.monotonic() + delay > deadline:
                        raise self._unavailable(
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
        raised = error_of(body)
        raise self._unavailable(str(raised)) if type(raised) is ServiceUnavailable else raised

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _once(self, operation: str, request: bytes, most: int) -> tuple[int, bytes]:
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
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        response = self._exchange(self._connection, operation, request)
        length = response.length
        if length is None or length > most:
            self._drop()
            raise ProtocolError(f"{self._url}: answered without a length, or beyond {most} B")
        answer = response.read()
        if response.will_close:
            # Here, not in the library, which would connect anew without looking at the pin.
            self._drop()
        if response.getheader("Content-Type") != CONTENT_TYPE:
            self._drop()
            raise ProtocolError(f"{self._url}: is no Cloister service")
        return response.status, answer

    def _exchange(
        self, connection: http.client.HTTPSConnection, operation: str, request: bytes
    ) -> http.client.HTTPResponse:
        try:
            connection.request("POST", PREFIX + operation, request, self._headers)
        except TimeoutError:
            raise
        except OSError:
            # A server that refuses a request does not read its body; its answer may be there.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return connection.getresponse()
            raise
        return connection.getresponse()

    def _check_pin(self, sock: ssl.SSLSocket) -> None:
        shown = sock.getpeercert(binary_form=True) or b""
        if self._pin is not None and hashlib.sha256(shown).digest() != self._pin:
            raise ssl.SSLCertVerificationError("not the pinned certificate")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "https" or not host or port is None or parts.path not in ("", "/"):
        raise InputError(f"{url}: give the address as https://HOST:PORT")
    return host, port
