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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jaxtyping import Int16, Int64, UInt32

from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import InputError, ProtocolError, ShapeError
from cloister.ring.bounds import MAX_BODY_BYTES, check_count, check_size
from cloister.ring.linear import Geometry, LinearMap
from cloister.training.ciphertexts import (
    CiphertextHost,
    LocalCiphertextServer,
    RecordingHost,
)
from cloister.wire.https.admission import Limits
from cloister.wire.https.bodies import Body
from cloister.wire.https.client import RETRY_FOR_S, HttpsClient
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.server import HttpsServer
from cloister.wire.request_log import Recorder

FORMAT = "cloister-ciphertexts-1"
PUBLIC_FILE, KEY_FILE, CERTIFICATE_FILE = "server.pub", "server.key", "server.crt"
TOKEN_BYTES = 32
VALID_DAYS = 3650
WORD_COPIES = 2
"""A product's words are there as an array, and once more as an answer."""
OPERATIONS = {
    "forward": MAX_BODY_BYTES,
    "gradient": MAX_BODY_BYTES,
}
"""Largest body of each."""
MAX_PUBLIC_BYTES = 65536


class RemoteCiphertextServer:
    """A ciphertext host at a URL; `retry_for_s` is how long it may be away.

    Raises   AuthorityUnavailable when it cannot be reached, and what the server raises
    """

    def __init__(self, url: str, *, public: Path, retry_for_s: float = RETRY_FOR_S) -> None:
        certificate, token = _read_public(public)
        self._client = HttpsClient(
            url, certificate=certificate, token=token, retry_for_s=retry_for_s
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See CiphertextHost."""
        geometry = linear.geometry
        fields = {"dataset": dataset, "geometry": geometry.to_fields()}
        answer = self._client.call("forward", fields, (ids, linear.weights))
        return _checked(answer, (len(ids), *geometry.out_shape))

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextHost."""
        fields = {"dataset": dataset, "geometry": geometry.to_fields()}
        answer = self._client.call("gradient", fields, (ids, delta))
        return _checked(answer, geometry.weight_shape)


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
    host = server if log is None else RecordingHost(server, log)
    key = folder / KEY_FILE
    files.check_private(key, key.stat())

    def admit(given: str | None) -> Principal:
        # Not secrecy, which needs none here: strangers shall not use up this machine.
        if not hmac.compare_digest((given or "").encode(), token.encode()):
            raise InputError("ciphertext server: the token is not this server's")
        return Principal("trusted runtime", route)

    def route(operation: str) -> Route:
        if operation not in OPERATIONS:
            known = " and ".join(OPERATIONS)
            raise ProtocolError(f"ciphertext server: knows {known}")
        return Route(OPERATIONS[operation], partial(_job, server, host, operation))

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


def _job(server: LocalCiphertextServer, host: CiphertextHost, operation: str, request: Body) -> Job:
    dataset, ids = request.text("dataset"), request.array(0, np.int64, 1)
    described = server.dataset(dataset)
    check_count(described, len(ids))
    geometry = Geometry.from_fields(request.mapping("geometry"))
    check_size(described, geometry, len(ids))
    tensor = request.array(1, np.int16, 4)
    elements = len(ids) * (math.prod(described.shape) + geometry.out_elements)
    elements += 2 * math.prod(geometry.weight_shape)
    run: Callable[[], np.ndarray]
    if operation == "forward":
        linear = LinearMap(geometry, np.ascontiguousarray(tensor))
        run = partial(host.forward, dataset, ids, linear)
    else:
        run = partial(host.gradient, dataset, ids, geometry, tensor)
    return Job(lambda: Body({}, (run(),)), nbytes=WORD_COPIES * 4 * elements)


def _checked(answer: Body, shape: tuple[int, ...]) -> UInt32[np.ndarray, "..."]:
    array = answer.array(0, np.uint32, len(shape))
    if array.shape != shape:
        raise ShapeError(f"ciphertext server: answered {array.shape} instead of {shape}")
    return array
