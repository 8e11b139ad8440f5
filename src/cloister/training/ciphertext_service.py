"""The ciphertext server as a process of its own, over HTTPS with a pinned certificate.

The training process is then the trusted runtime; this side has no key and no token of the
authority. Its data and answers are uniform. The *requests* to it are not: they hold sample ids, and
the first layer's weights, whose differences are gradients where that layer is trained (`sent`). Its
answers are not checked: a server that lies spoils the training, and chooses which samples have a
gradient. A Freivalds check is possible only on the ciphertexts, so modulo 2^32. There an error that
is a multiple of 2^31 passes every second check, and one such error switches a unit off or on.
"""

import hmac
import math
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from cloister.authority.request_log import Recorder
from cloister.authority.requests import Kind, Request, read_request
from cloister.base import files
from cloister.base.identity import (
    ACCESS_FILE,
    CERTIFICATE_FILE,
    PRIVATE_KEY_FILE,
    Access,
    new_folder,
)
from cloister.base.rng import Csprng
from cloister.errors import CiphertextServerUnavailable, InputError, ProtocolError
from cloister.ring.bounds import MAX_BODY_BYTES
from cloister.training.ciphertexts import (
    CiphertextServer,
    LocalCiphertextServer,
    RecordingServer,
)
from cloister.wire.https.admission import ServerLimits
from cloister.wire.https.bodies import Body
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.https_client import RETRY_FOR_S, HttpsClient
from cloister.wire.https.server import HttpsServer

WORD_COPIES = 2
"""A product's words are there as an array, and once more as an answer."""
OPERATIONS: tuple[Kind, ...] = ("forward", "gradient")


class RemoteCiphertextServer:
    """A ciphertext host at a URL; `retry_for_s` is how long it may be away.

    Raises   CiphertextServerUnavailable when it cannot be reached, and what the server raises
    """

    def __init__(self, url: str, *, access: Path, retry_for_s: float = RETRY_FOR_S) -> None:
        shown = Access.load(access)
        self._client = HttpsClient(
            url,
            certificate=shown.certificate,
            token=shown.token,
            retry_for_s=retry_for_s,
            unavailable=CiphertextServerUnavailable,
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """See CiphertextServer."""
        return request.answer(self._client.call(request.kind, request.fields, request.tensors))


def serve(
    server: LocalCiphertextServer,
    *,
    folder: Path,
    listen: str,
    limits: ServerLimits | None = None,
    log: Recorder | None = None,
) -> HttpsServer:
    """Answer for a ciphertext server until the result is closed; `folder` is from `init`.

    log   what this server is asked is kept here, for an audit
    """
    token = Access.load(folder / ACCESS_FILE).token
    asked: CiphertextServer = server if log is None else RecordingServer(server, log)
    key = folder / PRIVATE_KEY_FILE
    files.check_private(key, key.stat())

    def admit(given: str | None) -> Principal:
        # Not secrecy, which needs none here: strangers shall not use up this machine.
        if not hmac.compare_digest((given or "").encode(), token.encode()):
            raise InputError("ciphertext server: the token is not this server's")
        return Principal("trusted runtime", route)

    def route(operation: str) -> Route:
        if operation not in OPERATIONS:
            raise ProtocolError(f"ciphertext server: knows {' and '.join(OPERATIONS)}")
        return Route(MAX_BODY_BYTES, partial(_job, server, asked, operation))

    return HttpsServer(
        listen,
        admit,
        certificate=folder / CERTIFICATE_FILE,
        private_key=key,
        limits=limits,
    )


def init(folder: Path, *, rng: Csprng) -> Path:
    """Make a certificate, and the access file for the trusted side; gives the file's path.

    Raises   InputError when the folder is not empty
    """
    new_folder(folder)
    Access.create(folder, rng=rng)
    return folder / ACCESS_FILE


def _job(held: LocalCiphertextServer, server: CiphertextServer, kind: Kind, message: Body) -> Job:
    request, described = read_request(kind, message), held.dataset(message.text("dataset"))
    request.check(described)
    answer = math.prod(size or 0 for size in request.answer_shape)
    elements = len(request.ids) * math.prod(described.shape) + answer + request.operand.size
    return Job(lambda: Body({}, (server.ask(request),)), nbytes=WORD_COPIES * 4 * elements)
