"""The ciphertext server as a process of its own, over HTTPS with a pinned certificate.

The training process is then the trusted runtime; this side has no key and no token of the
authority. What it holds and answers is uniform; what it is *asked* is not: sample ids, and the
first layer's weights, whose differences are gradients where that layer is trained (`sent`). Its
answers are not checked: a server that lies spoils the training, and chooses which samples have a
gradient.
A Freivalds check is possible only on the ciphertexts, so modulo 2^32. There an error that is a
multiple of 2^31 passes every second check, and one such error switches a unit off or on.
"""

import datetime
import hmac
import json
import math
import os
from base64 import b64decode, b64encode
from functools import partial
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jaxtyping import UInt32

from cloister.authority.request_log import Recorder
from cloister.authority.requests import Kind, Request, read_request
from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import CiphertextServerUnavailable, InputError, ProtocolError
from cloister.ring.bounds import MAX_BODY_BYTES
from cloister.training.ciphertexts import (
    CiphertextServer,
    LocalCiphertextServer,
    RecordingServer,
)
from cloister.wire.https.admission import Limits
from cloister.wire.https.bodies import Body
from cloister.wire.https.client import RETRY_FOR_S, HttpsClient
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.server import HttpsServer

FORMAT = "cloister-ciphertexts-1"
PUBLIC_FILE, KEY_FILE, CERTIFICATE_FILE = "server.pub", "server.key", "server.crt"
TOKEN_BYTES = 32
VALID_DAYS = 3650
WORD_COPIES = 2
"""A product's words are there as an array, and once more as an answer."""
OPERATIONS: tuple[Kind, ...] = ("forward", "gradient")
MAX_PUBLIC_BYTES = 65536


class RemoteCiphertextServer:
    """A ciphertext host at a URL; `retry_for_s` is how long it may be away.

    Raises   CiphertextServerUnavailable when it cannot be reached, and what the server raises
    """

    def __init__(self, url: str, *, public: Path, retry_for_s: float = RETRY_FOR_S) -> None:
        certificate, token = _read_public(public)
        self._client = HttpsClient(
            url,
            certificate=certificate,
            token=token,
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
    limits: Limits | None = None,
    log: Recorder | None = None,
) -> HttpsServer:
    """Answer for a ciphertext server until the result is closed; `folder` is from `init`.

    log   what this server is asked is kept here, for an audit
    """
    token = _read_public(folder / PUBLIC_FILE)[1]
    asked: CiphertextServer = server if log is None else RecordingServer(server, log)
    key = folder / KEY_FILE
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


def init(folder: Path) -> Path:
    """Make a key, a certificate and the public file for the trusted side; gives its path.

    Raises   InputError when the folder is not empty
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; choose another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister ciphertext server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    der = certificate.public_bytes(serialization.Encoding.DER)
    fields = {
        "format": FORMAT,
        "certificate": b64encode(der).decode(),
        "token": os.urandom(TOKEN_BYTES).hex(),
    }
    files.create(folder / CERTIFICATE_FILE, pem, private=False)
    files.create(folder / KEY_FILE, private, private=True)
    # It is called public, and has the token in it.
    files.create(folder / PUBLIC_FILE, json.dumps(fields).encode(), private=True)
    return folder / PUBLIC_FILE


def _read_public(path: Path) -> tuple[bytes, str]:
    """Certificate and token.

    Raises   InputError
    """
    try:
        data = files.read_private(path, most=MAX_PUBLIC_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; run `cloister data init`") from None
    with parsing(f"{path}: is not a ciphertext server's public file"):
        fields = json.loads(data)
        if fields["format"] != FORMAT:
            raise InputError(f"{path}: is not a ciphertext server's public file")
        certificate = b64decode(fields["certificate"], validate=True)
        x509.load_der_x509_certificate(certificate)
        return certificate, str(fields["token"])


def _job(held: LocalCiphertextServer, server: CiphertextServer, kind: Kind, message: Body) -> Job:
    request, described = read_request(kind, message), held.dataset(message.text("dataset"))
    request.check(described)
    answer = math.prod(size or 0 for size in request.answer_shape)
    elements = len(request.ids) * math.prod(described.shape) + answer + request.operand.size
    return Job(lambda: Body({}, (server.ask(request),)), nbytes=WORD_COPIES * 4 * elements)
