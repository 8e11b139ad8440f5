"""The operator of a network between a caller and an attested service: it ends the TLS connections,
keeps every message, and can give the answers of an earlier conversation once more.
"""

import threading
from pathlib import Path

from cloister.attest.attested_service import MAX_CALL_BYTES
from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from cloister.wire.https.bodies import Body, encode
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.https_client import HttpsClient, InsecureAnyCertificate
from cloister.wire.https.server import HttpsServer

OVERHEAD_BYTES = 4096
STRANGERS = "strangers"


class ReplayingProxy:
    """Serves in background threads until `close`; `url` says where.

    messages    every body that went either way, as it was sent
    replaying   whether a handshake gets the first answer that the service gave to any
    """

    def __init__(self, upstream: str, *, folder: Path) -> None:
        """Bind and start.

        folder   has the certificate that callers are shown, and its key
        Raises   InputError
        """
        self.messages: list[bytes] = []
        self.replaying = False
        self._first: dict[str, Body] = {}
        self._upstream = upstream
        self._clients: dict[str | None, HttpsClient] = {}
        self._lock = threading.Lock()
        self._server = HttpsServer(
            "127.0.0.1:0",
            self._admit,
            certificate=folder / CERTIFICATE_FILE,
            private_key=folder / PRIVATE_KEY_FILE,
        )
        self.url = self._server.url

    def close(self) -> None:
        """Stop."""
        self._server.close()
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> "ReplayingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, token: str | None) -> Principal:
        def route(operation: str) -> Route:
            lane = token or STRANGERS
            return Route(
                MAX_CALL_BYTES + OVERHEAD_BYTES,
                lambda body: Job(lambda: self._pass_on(token, operation, body), lane=lane),
            )

        return Principal(token or STRANGERS, route, stranger=token is None)

    def _pass_on(self, token: str | None, operation: str, body: Body) -> Body:
        self.messages.append(encode(body))
        if self.replaying and token is None and operation in self._first:
            answer = self._first[operation]
        else:
            answer = self._client(token).call(operation, body.fields, body.tensors)
        self.messages.append(encode(answer))
        if token is None:
            self._first.setdefault(operation, answer)
        return answer

    def _client(self, token: str | None) -> HttpsClient:
        with self._lock:
            if token not in self._clients:
                self._clients[token] = HttpsClient(
                    self._upstream, certificate=InsecureAnyCertificate(), token=token
                )
            return self._clients[token]
