"""The identity of a worker that serves by TLS: a key, and the certificate that its clients pin."""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cloister.base import files
from cloister.base.identity import (
    CERTIFICATE_FILE,
    MAX_FILE_BYTES,
    PRIVATE_KEY_FILE,
    create_certificate,
    new_folder,
)
from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError

WORKER_NAME = "cloister-worker"
"""The name in every worker's certificate; it carries no trust, the certificate is pinned."""


@dataclass(frozen=True, repr=False)
class TlsIdentity:
    """The private key and the certificate of a worker, both in PEM.

    Secret   private_key
    """

    private_key: bytes
    certificate: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the certificate, in hexadecimal: compare it by another channel."""
        found = x509.load_pem_x509_certificate(self.certificate)
        return found.fingerprint(hashes.SHA256()).hex()

    @staticmethod
    def open_or_create(folder: Path) -> "TlsIdentity":
        """The identity in a folder; a new one where the folder is empty or not there yet.

        Raises   InputError when the folder holds something else, or others can read the key
        """
        path = folder / PRIVATE_KEY_FILE
        if not path.exists():
            new_folder(folder)
            create_certificate(folder, WORKER_NAME)
        try:
            private_key = files.read_private(path, most=MAX_FILE_BYTES)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        return TlsIdentity(private_key, load_certificate(folder / CERTIFICATE_FILE))


def load_certificate(path: Path) -> bytes:
    """A worker's certificate, in PEM, to pin.

    Raises   InputError when the file is none, or is one that could vouch for others
    """
    what = f"{path}: is not the {CERTIFICATE_FILE} that `cloister worker serve --tls` made"
    with parsing(what), open_regular(path) as file:
        found = x509.load_pem_x509_certificate(file.read(MAX_FILE_BYTES))
        if found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise InputError(
                f"{path}: is the certificate of an authority, which vouches for others; give the "
                "one that `cloister worker serve --tls` made"
            )
        # The first one of the file alone.
        return found.public_bytes(serialization.Encoding.PEM)
