"""The identity of a service: its certificate, and the file by which its clients know it.

A ciphertext server's clients have an access file, which holds a token: it is secret. The authority
has a key pair besides, to which pad keys are sealed (`sealing`), and hands out a public file.
"""

import base64
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.base import files, sealing
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import Csprng
from cloister.base.sealing import KeyPair
from cloister.errors import EncryptionError, InputError

PUBLIC_FILE = "authority.pub"
ACCESS_FILE = "server.access"
CERTIFICATE_FILE = "certificate.pem"
PRIVATE_KEY_FILE = "certificate.key"
HPKE_FILE = "hpke.key"
FORMAT = "cloister-authority-1"
ACCESS_FORMAT = "cloister-access-1"
TOKEN_BYTES = 32
VALID_DAYS = 3650
MAX_FILE_BYTES = 65536


@dataclass(frozen=True)
class PublicIdentity:
    """What clients and servers need: the certificate to pin, and the key to seal to."""

    certificate: bytes
    hpke_public: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over certificate and HPKE key, in hexadecimal: compare it by another channel."""
        certificate = hashlib.sha256(self.certificate).digest()
        return hashlib.sha256(certificate + hashlib.sha256(self.hpke_public).digest()).hexdigest()

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """Encrypt to the authority.

        Secret   plaintext.  Public: info, which must be the same at `Identity.open_sealed`
        Source   RFC 9180, base mode: the sender is not authenticated, its token is
        """
        return sealing.seal(self.hpke_public, plaintext, info=info)

    def to_json(self) -> str:
        """The contents of the public file."""
        fields = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "suite": sealing.SUITE,
            "hpke_public": base64.b64encode(self.hpke_public).decode(),
            "certificate": base64.b64encode(self.certificate).decode(),
        }
        return json.dumps(fields, indent=2) + "\n"

    @staticmethod
    def load(path: Path | str) -> "PublicIdentity":
        """Read the public file.

        Raises   InputError when it cannot be read, EncryptionError when it is damaged
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                data = file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        damaged = f"{path}: is not an authority's public file, or is damaged; get it again"
        with parsing(damaged, kind=EncryptionError):
            fields: dict[str, Any] = json.loads(data)
            if fields["format"] != FORMAT or fields["suite"] != sealing.SUITE:
                raise EncryptionError(f"{path}: is of another version of Cloister")
            public = PublicIdentity(
                base64.b64decode(fields["certificate"], validate=True),
                base64.b64decode(fields["hpke_public"], validate=True),
            )
            x509.load_der_x509_certificate(public.certificate)
            stated = fields["fingerprint"]
        sized = len(public.hpke_public) == sealing.PUBLIC_BYTES
        if not sized or stated != public.fingerprint:
            raise EncryptionError(damaged)
        return public


@dataclass(frozen=True, repr=False)
class Access:
    """The access data of a service's client: the certificate to pin, and the token to show.

    Secret   token
    """

    certificate: bytes
    token: str

    @staticmethod
    def create(folder: Path, *, rng: Csprng) -> "Access":
        """Make a service's certificate and its access file in a folder.

        Raises   InputError when the folder holds one already
        """
        access = Access(
            create_certificate(folder, "cloister ciphertext server"),
            rng.random_bytes(TOKEN_BYTES).hex(),
        )
        fields = {
            "format": ACCESS_FORMAT,
            "certificate": base64.b64encode(access.certificate).decode(),
            "token": access.token,
        }
        _write(folder / ACCESS_FILE, (json.dumps(fields, indent=2) + "\n").encode(), private=True)
        return access

    @staticmethod
    def load(path: Path) -> "Access":
        """Read an access file.

        Raises   InputError, also when others can read it
        """
        try:
            data = files.read_private(path, most=MAX_FILE_BYTES)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}; `cloister data init` makes access files"
            ) from None
        with parsing(f"{path}: is not an access file, or is damaged"):
            fields = json.loads(data)
            if fields["format"] != ACCESS_FORMAT:
                raise InputError(f"{path}: is not an access file of this version of Cloister")
            certificate = base64.b64decode(fields["certificate"], validate=True)
            x509.load_der_x509_certificate(certificate)
            return Access(certificate, str(fields["token"]))


class Identity:
    """The authority's private side; never leaves its folder."""

    def __init__(self, public: PublicIdentity, keys: KeyPair) -> None:
        self.public, self._keys = public, keys

    def open_sealed(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext of `PublicIdentity.seal`.

        Raises   EncryptionError when it was changed or sealed to another authority or purpose
        """
        return self._keys.open_sealed(sealed, info=info)

    @classmethod
    def create(cls, folder: Path, *, rng: Csprng) -> "Identity":
        """Draw the keys and write the files, readable by their owner alone.

        Raises   InputError when the folder holds an authority already
        """
        seed = rng.random_bytes(sealing.SEED_BYTES)
        _write(folder / HPKE_FILE, seed, private=True)
        certificate = create_certificate(folder, "cloister authority")
        keys = KeyPair(seed)
        public = PublicIdentity(certificate, keys.public)
        _write(folder / PUBLIC_FILE, public.to_json().encode(), private=False)
        return cls(public, keys)

    @classmethod
    def open(cls, folder: Path) -> "Identity":
        """Read what `create` wrote.

        Raises   InputError when there is no authority, or others can read its keys
        """
        path = folder / HPKE_FILE
        try:
            # More than it should have, to notice it.
            seed = files.read_private(path, most=2 * sealing.SEED_BYTES)
            private_key = folder / PRIVATE_KEY_FILE
            files.check_private(private_key, private_key.stat())
        except OSError as error:
            raise InputError(
                f"{folder}: holds no authority ({error.strerror}); run `cloister authority init`"
            ) from None
        if len(seed) != sealing.SEED_BYTES:
            raise EncryptionError(f"{path}: is damaged; restore the folder from a backup")
        public = PublicIdentity.load(folder / PUBLIC_FILE)
        keys = KeyPair(seed)
        if public.hpke_public != keys.public:
            raise EncryptionError(f"{path}: belongs to another {PUBLIC_FILE}")
        return cls(public, keys)


def create_certificate(folder: Path, name: str) -> bytes:
    """Write a key and a certificate that it signs itself; gives the certificate, in DER.

    Raises   InputError when the folder holds one already
    """
    private = ec.generate_private_key(ec.SECP256R1())
    # Names and dates carry no trust here: clients pin the certificate itself.
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    key = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(folder / PRIVATE_KEY_FILE, key, private=True)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _write(folder / CERTIFICATE_FILE, pem, private=False)
    return certificate.public_bytes(serialization.Encoding.DER)


def new_folder(folder: Path) -> None:
    """Make the folder of a service, for its owner alone; an empty one may be there.

    Raises   InputError when it holds anything, or cannot be made
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; choose another folder")
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror or error})") from None


def _write(path: Path, data: bytes, *, private: bool) -> None:
    try:
        files.create(path, data, private=private)
    except FileExistsError:
        raise InputError(f"{path}: exists already; choose another folder") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room, then begin anew in "
            "another folder"
        ) from None
