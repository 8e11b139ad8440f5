"""The ciphertext server as a process of its own, over HTTPS with a pinned certificate.

The training process is then the trusted runtime; this side has no key and no token of the
authority, so what it holds, is asked and answers is what any host may see: sample ids, the first
layer's weights, ring elements. Its answers are not checked: a server that lies can spoil the
training, and so shape what the weights it sees next tell. A Freivalds check would not help here: it
needs the samples, or costs more modulo 2^32 than the product of a first layer itself.
"""

import datetime
import hmac
import json
import os
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jaxtyping import Int16, Int64, UInt32

from cloister import files
from cloister.errors import InputError, ProtocolError, ShapeError
from cloister.field.linear import Geometry, LinearMap
from cloister.training.server import CiphertextServer
from cloister.wire.bodies import Body
from cloister.wire.https import RETRY_FOR_S, HttpsClient
from cloister.wire.https_server import HttpsServer, Job

FORMAT = "cloister-ciphertexts-1"
PUBLIC_FILE, KEY_FILE, CERTIFICATE_FILE = "server.pub", "server.key", "server.crt"
TOKEN_BYTES = 32
VALID_DAYS = 3650
MAX_SAMPLES = 1 << 20
MAX_PUBLIC_BYTES = 65536


class RemoteCiphertextServer:
    """A ciphertext server at a URL; `retry_for_s` is how long it may be away.

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
        """See CiphertextServer."""
        geometry = linear.geometry
        fields = {"dataset": dataset, "geometry": list(geometry.to_tuple())}
        answer = self._client.call("forward", fields, (ids, linear.weights))
        return _checked(answer, (len(ids), *geometry.out_shape))

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextServer."""
        fields = {"dataset": dataset, "geometry": list(geometry.to_tuple())}
        answer = self._client.call("gradient", fields, (ids, delta))
        return _checked(answer, geometry.weight_shape)

    def data(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """See CiphertextServer."""
        answer = self._client.call("data", {"dataset": dataset}, (ids,))
        return _counted(answer, len(ids), rank=4)

    def labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """See CiphertextServer."""
        answer = self._client.call("labels", {"dataset": dataset}, (ids,))
        return _counted(answer, len(ids), rank=2)


def serve(server: CiphertextServer, *, folder: Path, listen: str) -> HttpsServer:
    """Answer for a ciphertext server until the result is closed; `folder` is from `init`."""
    token = _read_public(folder / PUBLIC_FILE)[1]
    key = folder / KEY_FILE
    files.check_private(key, key.stat())

    def handle(operation: str, given: str | None, request: Body) -> Job:
        # Not secrecy, which needs none here: strangers shall not use up this machine.
        if not hmac.compare_digest((given or "").encode(), token.encode()):
            raise InputError("ciphertext server: the token is not this server's")
        return Job(lambda: Body({}, (_answer(server, operation, request),)))

    return HttpsServer(
        listen,
        handle,
        certificate=folder / CERTIFICATE_FILE,
        private_key=key,
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
        fields = json.loads(files.read_private(path, most=MAX_PUBLIC_BYTES))
        if fields["format"] != FORMAT:
            raise InputError(f"{path}: is not a ciphertext server's public file")
        return b64decode(fields["certificate"]), str(fields["token"])
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; run `cloister ciphertexts init`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a ciphertext server's public file") from error


def _answer(server: CiphertextServer, operation: str, request: Body) -> np.ndarray:
    dataset = request.text("dataset")
    ids = request.array(0, np.int64, 1)
    if len(ids) > MAX_SAMPLES:
        raise InputError(f"ciphertext server: at most {MAX_SAMPLES} samples at once")
    if operation == "data":
        return server.data(dataset, ids)
    if operation == "labels":
        return server.labels(dataset, ids)
    geometry = Geometry.from_tuple(request.numbers("geometry"))
    if operation == "forward":
        weights = np.ascontiguousarray(request.array(1, np.int16, 4))
        return server.forward(dataset, ids, LinearMap(geometry, weights))
    if operation == "gradient":
        return server.gradient(dataset, ids, geometry, request.array(1, np.int16, 4))
    raise ProtocolError("ciphertext server: knows forward, gradient, data and labels")


def _checked(answer: Body, shape: tuple[int, ...]) -> UInt32[np.ndarray, "..."]:
    array = answer.array(0, np.uint32, len(shape))
    if array.shape != shape:
        raise ShapeError(f"ciphertext server: answered {array.shape} instead of {shape}")
    return array


def _counted(answer: Body, count: int, *, rank: int) -> UInt32[np.ndarray, "..."]:
    array = answer.array(0, np.uint32, rank)
    if len(array) != count:
        raise ShapeError(f"ciphertext server: answered {len(array)} of {count} samples")
    return array
