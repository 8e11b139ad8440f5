"""TLS to makers: one certificate is trusted, and no seed is readable on the way."""

import datetime
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.base.tls_identity import WORKER_NAME, TlsIdentity, load_certificate
from cloister.errors import InputError, WorkerUnavailable
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.worker.serve import start_server
from wire.loopback import ask_block, block_of, linear, slow_terms

MAPS = {1: linear()}


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return TlsIdentity.open_or_create(tmp_path_factory.mktemp("tls") / "maker")


@pytest.fixture(scope="module")
def server(identity):
    server = start_server("127.0.0.1:0", identity=identity)
    yield server
    server.close()


def use(link):
    try:
        link.load_linear(1, MAPS[1])
        message = block_of(MAPS)
        assert (ask_block(link, message) == slow_terms(message, MAPS)).all()
    finally:
        link.close()


def test_the_pinned_certificate_is_enough(server, identity):
    link = RpcLink(server.address, certificate=identity.certificate)
    assert link.encrypted
    use(link)


def test_another_certificate_of_the_same_name_is_refused(server, tmp_path):
    other = TlsIdentity.open_or_create(tmp_path / "other")
    with pytest.raises(WorkerUnavailable, match="another certificate"):
        use(RpcLink(server.address, certificate=other.certificate, timeout_s=20))


def test_a_client_without_encryption_is_not_served(server):
    with pytest.raises(WorkerUnavailable):
        use(RpcLink(server.address, timeout_s=20))


def test_a_server_without_encryption_is_refused(identity):
    plain = start_server("127.0.0.1:0")
    with pytest.raises(WorkerUnavailable, match="--tls"):
        use(RpcLink(plain.address, certificate=identity.certificate, timeout_s=20))
    plain.close()


class Tap:
    """Carries one connection to a server and keeps all bytes of both directions."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes = bytearray()
        self._thread = threading.Thread(target=self._serve, args=(host, int(port)))
        self._thread.start()

    def _serve(self, host, port):
        near, _ = self._listener.accept()
        with (
            near,
            socket.create_connection((host, port)) as far,
            selectors.DefaultSelector() as both,
        ):
            both.register(near, selectors.EVENT_READ, far)
            both.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in both.select():
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    self.bytes += data
                    key.data.sendall(data)

    def close(self):
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_listener_reads_no_seed(server, identity, encrypted):
    """And would, without TLS."""
    plain = start_server("127.0.0.1:0")
    tap = Tap(server.address if encrypted else plain.address)
    use(RpcLink(tap.address, certificate=identity.certificate if encrypted else None))
    for words in (block_of(MAPS).seed, MAPS[1].weights.tobytes()):
        assert (words in tap.bytes) is not encrypted
    tap.close()
    plain.close()


def test_the_identity_is_made_once_and_its_key_is_private(tmp_path):
    folder = tmp_path / "a" / "maker"
    made = TlsIdentity.open_or_create(folder)
    assert TlsIdentity.open_or_create(folder) == made
    assert stat.S_IMODE((folder / "certificate.key").stat().st_mode) == 0o600
    assert load_certificate(folder / "certificate.pem") == made.certificate
    assert made.private_key not in repr(made).encode()
    (folder / "certificate.key").chmod(0o644)
    with pytest.raises(InputError, match=r"certificate\.key"):
        TlsIdentity.open_or_create(folder)


def test_folders_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        TlsIdentity.open_or_create(tmp_path)
    folder = tmp_path / "maker"
    TlsIdentity.open_or_create(folder)
    (folder / "certificate.pem").unlink()
    with pytest.raises(InputError, match="no such file"):
        TlsIdentity.open_or_create(folder)


def certificate(*, authority):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, WORKER_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if authority is not None:
        limits = x509.BasicConstraints(ca=authority, path_length=None)
        builder = builder.add_extension(limits, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_only_a_certificate_that_vouches_for_no_other_is_pinned(tmp_path):
    path = tmp_path / "maker.pem"
    good = certificate(authority=False)
    path.write_bytes(good + certificate(authority=True))
    assert load_certificate(path) == good
    for data, words in (
        (certificate(authority=True), "vouches for others"),
        (certificate(authority=None), "not the certificate.pem that"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "not the certificate.pem that",
        ),
        (b"", "not the certificate.pem that"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            load_certificate(path)
    with pytest.raises(InputError, match="no such file"):
        load_certificate(tmp_path / "missing.pem")


def test_the_command_serves_by_tls_and_says_what_clients_need(tmp_path):
    folder = tmp_path / "maker"
    command = [
        sys.executable, "-P", "-m", "cloister", "worker", "serve", "--listen", "127.0.0.1:0",
        "--tls", str(folder),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            first, second, third = (process.stdout.readline() for _ in range(3))
            address = first.removeprefix("worker: serving on ").partition(",")[0]
            assert "encrypted" in first
            # Lines are as wide as the terminal.
            assert "certificate.pem" in second + third
            pinned = load_certificate(folder / "certificate.pem")
            use(RpcLink(address, certificate=pinned))
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            said = first + second + third + process.stdout.read()
            fingerprint = TlsIdentity.open_or_create(folder).fingerprint
            assert fingerprint in said.replace("\n", "")
        finally:
            process.kill()
