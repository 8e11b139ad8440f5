"""Who the authority is: its certificate, its HPKE key pair, and the public file it hands out.

HPKE (RFC 9180, base mode) in its hybrid form: X25519 together with ML-KEM-768, so that mask keys
recorded today stay secret from a quantum computer of tomorrow. All of it is the library's.
"""

import base64
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.x509.oid import NameOID

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import Csprng
from cloister.errors import EncryptionError, InputError

PUBLIC_FILE = "authority.pub"
CERTIFICATE_FILE = "certificate.pem"
PRIVATE_KEY_FILE = "certificate.key"
HPKE_FILE = "hpke.key"
FORMAT = "cloister-authority-1"
SUITE = "MLKEM768-X25519, HKDF-SHA256, AES-256-GCM"
SEED_BYTES = 64
X25519_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
VALID_DAYS = 3650
MAX_PUBLIC_BYTES = 65536

_HPKE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


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
        mlkem_public = mlkem.MLKEM768PublicKey.from_public_bytes(
            self.hpke_public[:MLKEM_PUBLIC_BYTES]
        )
        x25519_public = x25519.X25519PublicKey.from_public_bytes(
            self.hpke_public[MLKEM_PUBLIC_BYTES:]
        )
        key = hpke.MLKEM768X25519PublicKey(mlkem_public, x25519_public)
        return _HPKE.encrypt(plaintext, key, info)

    def to_json(self) -> str:
        """The contents of the public file."""
        fields = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "suite": SUITE,
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
                data = file.read(MAX_PUBLIC_BYTES)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        damaged = f"{path}: is not an authority's public file, or is damaged; get it again"
        with parsing(damaged, kind=EncryptionError):
            fields: dict[str, Any] = json.loads(data)
            if fields["format"] != FORMAT or fields["suite"] != SUITE:
                raise EncryptionError(f"{path}: is of another version of Cloister")
            public = PublicIdentity(
                base64.b64decode(fields["certificate"], validate=True),
                base64.b64decode(fields["hpke_public"], validate=True),
            )
            x509.load_der_x509_certificate(public.certificate)
            stated = fields["fingerprint"]
        sizes = len(public.hpke_public) == MLKEM_PUBLIC_BYTES + X25519_BYTES
        if not sizes or stated != public.fingerprint:
            raise EncryptionError(damaged)
        return public


class Identity:
    """The authority's private side; never leaves its folder."""

    def __init__(self, public: PublicIdentity, hpke_seed: bytes) -> None:
        self.public = public
        self._key = hpke.MLKEM768X25519PrivateKey(
            mlkem.MLKEM768PrivateKey.from_seed_bytes(hpke_seed[:SEED_BYTES]),
            x25519.X25519PrivateKey.from_private_bytes(hpke_seed[SEED_BYTES:]),
        )

    def open_sealed(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext of `PublicIdentity.seal`.

        Raises   EncryptionError when it was changed or sealed to another authority or purpose
        """
        try:
            return _HPKE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise EncryptionError(
                "a sealed key was changed, or sealed to another authority or purpose"
            ) from None

    @classmethod
    def create(cls, folder: Path, *, rng: Csprng) -> "Identity":
        """Draw the keys and write the files, readable by their owner alone.

        Raises   InputError when the folder holds an authority already
        """
        seed = rng.random_bytes(SEED_BYTES + X25519_BYTES)
        private = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(private)
        public = PublicIdentity(
            certificate.public_bytes(serialization.Encoding.DER), _hpke_public(seed)
        )
        _write(folder / HPKE_FILE, seed, private=True)
        _write(
            folder / PRIVATE_KEY_FILE,
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            private=True,
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        _write(folder / CERTIFICATE_FILE, pem, private=False)
        _write(folder / PUBLIC_FILE, public.to_json().encode(), private=False)
        return cls(public, seed)

    @classmethod
    def open(cls, folder: Path) -> "Identity":
        """Read what `create` wrote.

        Raises   InputError when there is no authority, or others can read its keys
        """
        path = folder / HPKE_FILE
        try:
            # More than it should have, to notice it.
            seed = files.read_private(path, most=2 * SEED_BYTES)
            private_key = folder / PRIVATE_KEY_FILE
            files.check_private(private_key, private_key.stat())
        except OSError as error:
            raise InputError(
                f"{folder}: holds no authority ({error.strerror}); run `cloister authority init`"
            ) from None
        if len(seed) != SEED_BYTES + X25519_BYTES:
            raise EncryptionError(f"{path}: is damaged; restore the folder from a backup")
        public = PublicIdentity.load(folder / PUBLIC_FILE)
        if public.hpke_public != _hpke_public(seed):
            raise EncryptionError(f"{path}: belongs to another {PUBLIC_FILE}")
        return cls(public, seed)


def _hpke_public(seed: bytes) -> bytes:
    mlkem_key = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:SEED_BYTES])
    x25519_key = x25519.X25519PrivateKey.from_private_bytes(seed[SEED_BYTES:])
    return mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()


def _certificate(private: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # Names and dates carry no trust here: clients pin the certificate itself.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister authority")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )


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
