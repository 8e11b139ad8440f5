"""A broker's folder: its certificate, the vendor's public key, the policy and the ledger.

    certificate.pem, certificate.key   the identity that runtimes pin; tickets name its SHA-256
    vendor.pub                         whose tickets and bundles count
    policy.toml                        what evidence has to say before a key leaves
    collateral/                        certificates, revocation lists and vendors' documents
    meter.key                          the key that the keys of meters are derived from
    releases.sqlite                    keys of bundles, limits, entries, leased counters

Policy and collateral are read when the broker starts: after a change, restart it. Then every
session ends, so that every runtime is appraised anew.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.base import files
from cloister.base.hkdf import derive
from cloister.base.identity import (
    CERTIFICATE_FILE,
    MAX_FILE_BYTES,
    create_certificate,
    new_folder,
)
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.broker import release_ledger
from cloister.broker.ledger_entry import EntryKind
from cloister.broker.ledger_verification import key_digest
from cloister.broker.release_ledger import LedgerChange, LicenseTerms, changing
from cloister.bundle.bundle_header import BundleHeader
from cloister.bundle.bundle_keys import (
    VENDOR_PUBLIC,
    BundleKey,
    load_content_key,
    load_vendor,
)
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import EncryptionError, InputError

POLICY, COLLATERAL, METER_KEY = "policy.toml", "collateral", "meter.key"
CERTIFICATE_NAME = "cloister key broker"
MAX_COPIED_BYTES = 1 << 24
_METER_PURPOSE = b"cloister broker meter key v1\0"


@dataclass(frozen=True, repr=False)
class NewBundle:
    """A bundle of the vendor, and the key of it alone.

    Secret   key
    """

    header: BundleHeader
    key: BundleKey

    @staticmethod
    def read(path: Path, content_key: Path, *, vendor: Ed25519PublicKey) -> "NewBundle":
        """Verify a bundle and open it once: the key is the right one.

        Raises   InputError, BundleError
        """
        header = SealedBundle.show(path)
        key = BundleKey.derive(load_content_key(content_key), bundle_id=header.bundle_id)
        SealedBundle.open(path, key, vendor=vendor)
        return NewBundle(header, key)

    def record(self, change: LedgerChange, *, time: int) -> None:
        """Keep the key, and say so in the chain."""
        change.put_bundle(self.header.bundle_id, self.key.key)
        fields = {
            "bundle": self.header.bundle_id.hex(),
            "version": self.header.version,
            "plan": self.header.plan_digest.hex(),
            "key_sha256": key_digest(self.key.key),
        }
        change.append(EntryKind.BUNDLE, fields, time=time)


@dataclass(frozen=True, repr=False)
class BrokerFolder:
    """What a broker reads when it starts.

    certificate   SHA-256 of the certificate in DER

    Secret        the key of the meters
    """

    path: Path
    certificate: bytes
    vendor: Ed25519PublicKey
    policy: Policy
    collateral: Collateral
    _meter_key: bytes

    @property
    def ledger(self) -> Path:
        """The ledger of releases."""
        return self.path / release_ledger.FILE

    @staticmethod
    def open(path: Path) -> "BrokerFolder":
        """Read the folder.

        Raises   InputError, AttestationError for damaged collateral, EncryptionError
        """
        try:
            key = files.read_private(path / METER_KEY, most=2 * KEY_BYTES)
        except OSError as error:
            raise InputError(
                f"{path}: holds no broker ({error.strerror}); run `cloister broker init`"
            ) from None
        if len(key) != KEY_BYTES:
            raise EncryptionError(f"{path / METER_KEY}: is damaged; restore it from a backup")
        return BrokerFolder(
            path,
            certificate_digest(path / CERTIFICATE_FILE),
            load_vendor(path / VENDOR_PUBLIC),
            Policy.load(path / POLICY),
            Collateral.load([path / COLLATERAL]),
            key,
        )

    def meter_key(self, license_id: str, bundle_id: bytes, meter: bytes) -> bytes:
        """The key of one meter, the same at every release.

        Secret   result
        """
        # The licence stands last: the parts before it have a fixed length.
        info = _METER_PURPOSE + bundle_id + meter + license_id.encode()
        return derive(self._meter_key, info=info)


def create(
    folder: Path,
    *,
    vendor: Path,
    policy: Path,
    bundles: Sequence[tuple[Path, Path]],
    collateral: Sequence[Path],
    terms: LicenseTerms,
    now: datetime,
    rng: Csprng,
) -> bytes:
    """Make a broker's folder; gives the SHA-256 of its certificate.

    bundles   each with the file of its content key
    terms     the limits of every licence without its own

    Raises   InputError, BundleError
    """
    signer = load_vendor(vendor)
    Policy.load(policy)
    Collateral.load(collateral)
    added = [NewBundle.read(bundle, key, vendor=signer) for bundle, key in bundles]
    time = int(now.timestamp())
    new_folder(folder)
    digest = hashlib.sha256(create_certificate(folder, CERTIFICATE_NAME)).digest()
    try:
        files.create(folder / VENDOR_PUBLIC, _content(vendor), private=False)
        files.create(folder / POLICY, _content(policy), private=False)
        (folder / COLLATERAL).mkdir()
        for path in _each_file(collateral):
            files.create(folder / COLLATERAL / path.name, _content(path), private=False)
        files.create(folder / METER_KEY, rng.random_bytes(KEY_BYTES), private=True)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: {error.strerror or error}; begin anew in another folder"
        ) from None
    ledger = folder / release_ledger.FILE
    fields = {"certificate": digest.hex(), "vendor": signer.public_bytes_raw().hex()}
    release_ledger.create(ledger, fields, terms=terms, time=time)
    with changing(ledger) as change:
        for bundle in added:
            bundle.record(change, time=time)
    return digest


def certificate_digest(path: Path) -> bytes:
    """The SHA-256 of a certificate file, over its DER; tickets name it.

    Raises   InputError
    """
    with parsing(f"{path}: is no certificate of a broker"), open_regular(path) as file:
        found = x509.load_pem_x509_certificate(file.read(MAX_FILE_BYTES))
        return hashlib.sha256(found.public_bytes(Encoding.DER)).digest()


def _each_file(paths: Sequence[Path]) -> list[Path]:
    return [
        one
        for path in paths
        for one in (sorted(path.iterdir()) if path.is_dir() else [path])
        if one.is_file()
    ]


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(MAX_COPIED_BYTES)
