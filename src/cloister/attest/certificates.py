"""Chains of X.509 certificates up to a pinned root, at a stated time, and lists of revoked ones.

Path building is left out on purpose: platforms send their chain in order, and a verifier that
searches for one has more to go wrong.
"""

import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.check_tree import Check, refused
from cloister.base.reading import parsing
from cloister.errors import AttestationError

MAX_CERTIFICATES = 16
MAX_BYTES = 1 << 20
_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_KNOWN_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)


def load_certificate(data: bytes, what: str) -> x509.Certificate:
    """A certificate from DER or PEM.

    Raises   AttestationError
    """
    # AMD's VCEKs have the serial number 0, about which the library warns when it parses them.
    with parsing(f"{what}: is not a certificate", kind=AttestationError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)


def load_certificates(data: bytes, what: str) -> list[x509.Certificate]:
    """Certificates in a row from PEM, or one from DER.

    Raises   AttestationError for none, for blocks that are damaged, and for more than any platform
             sends
    """
    return [load_certificate(one, what) for one in _blocks(data, what)]


def load_chain(
    data: bytes, pinned: Sequence[x509.Certificate], what: str
) -> list[x509.Certificate]:
    """A chain in PEM up to the certificate that a pinned root issued; the rest is not read.

    Platforms send the root too, which counts for nothing: the pinned one does.

    Raises   AttestationError
    """
    chain: list[x509.Certificate] = []
    for block in _blocks(data, what):
        chain.append(load_certificate(block, what))
        if any(chain[-1].issuer == root.subject for root in pinned):
            break
    return chain


def _blocks(data: bytes, what: str) -> list[bytes]:
    """The DER of each block of PEM, whose whole encoding has to be right; or DER as it is."""
    if len(data) > MAX_BYTES:
        raise AttestationError(f"{what}: {len(data)} bytes are more than certificates take")
    if data[:1] == b"\x30":
        return [data]
    found: list[bytes] = []
    for label, body, end in _pem(data):
        if len(found) == MAX_CERTIFICATES:
            raise AttestationError(f"{what}: has more than {MAX_CERTIFICATES} certificates")
        with parsing(f"{what}: is no PEM", kind=AttestationError):
            text = b"".join(body.split())
            found.append(b64decode(text))
            if label != end or b64encode(found[-1]) != text:
                raise ValueError("a block ends under another label, or is no base64")
    if not 1 <= len(found) <= MAX_CERTIFICATES:
        raise AttestationError(f"{what}: has {len(found)} certificates, of 1 to {MAX_CERTIFICATES}")
    return found


def _pem(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The label, the text and the label at the end of each block of PEM, in one pass.

    A regular expression would begin anew at every beginning of a block that has no end.
    """
    at = 0
    while True:
        _, begin, rest = _partition(data, _BEGIN, at)
        label, dashes, body = _partition(data, _DASHES, rest)
        text, found, end = _partition(data, _END, body)
        closing, last, at = _partition(data, _DASHES, end)
        if not (begin and dashes and found and last):
            return
        yield label, text, closing


def _partition(data: bytes, mark: bytes, at: int) -> tuple[bytes, bool, int]:
    """What stands before a mark, whether it is there, and where it ends."""
    found = data.find(mark, at)
    end = len(data) if found < 0 else found
    return data[at:end], found >= 0, min(end + len(mark), len(data))


@cache
def roots(name: str) -> tuple[x509.Certificate, ...]:
    """The pinned roots of a vendor, from `roots/NAME.pem`."""
    data = resources.files(__package__).joinpath("roots", f"{name}.pem").read_bytes()
    return tuple(load_certificates(data, name))


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate."""
    return certificate.fingerprint(hashes.SHA256())


def named(certificate: x509.Certificate) -> str:
    """A certificate for people."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def verify_chain(
    chain: Sequence[x509.Certificate],
    pinned: Sequence[x509.Certificate],
    *,
    now: datetime,
    check: Check,
    eternal: bool = False,
) -> datetime:
    """Check a chain from the leaf up to a pinned root; when its first certificate expires.

    chain     leaf first; the root itself may be left out
    eternal   the vendor's certificates never expire, so nothing is said of an end

    Raises   AttestationError
    """
    if not chain:
        raise AttestationError("certificates: none are given; give the platform's chain")
    path = _up_to(chain, pinned)
    for depth, (one, issuer) in enumerate(pairwise(path)):
        with check.step(f"{named(one)} is signed by {named(issuer)}"):
            _verify_issued(one, issuer, below=depth)
    for one in path:
        with check.step(f"{named(one)} is valid at {now:%Y-%m-%d %H:%M}"):
            require_valid_at(one, now)
            _require_known_extensions(one)
    ends = min(one.not_valid_after_utc for one in path)
    return datetime.max.replace(tzinfo=now.tzinfo) if eternal else ends


def _up_to(
    chain: Sequence[x509.Certificate], pinned: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The chain with the pinned root in the place of what was sent from there on."""
    for depth, one in enumerate(chain):
        for root in pinned:
            if one.issuer == root.subject:
                return [*chain[: depth + 1], root]
    raise refused(
        f"certificate {named(chain[-1])}: issuer",
        expected=[named(root) for root in pinned],
        found=chain[-1].issuer.rfc4514_string(),
        remedy="give the rest of the chain, which has to end at one of these",
    )


def _verify_issued(one: x509.Certificate, issuer: x509.Certificate, *, below: int) -> None:
    """Check one signature; `below` certificates of authorities lie under the issuer."""
    try:
        one.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        raise AttestationError(
            f"certificate {named(one)}: is not signed by {named(issuer)}; give the chain of this "
            "very platform"
        ) from None
    with parsing(f"certificate {named(issuer)}: is damaged", kind=AttestationError):
        extensions = issuer.extensions
        try:
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            constraints = x509.BasicConstraints(ca=False, path_length=None)
        try:
            signs = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        except x509.ExtensionNotFound:
            signs = True
    short = constraints.path_length is not None and constraints.path_length < below
    if not constraints.ca or not signs or short:
        raise AttestationError(
            f"certificate {named(issuer)}: may not sign {named(one)}; its vendor did not make it "
            "an authority for that"
        )


def require_valid_at(certificate: x509.Certificate, now: datetime) -> None:
    """Refuse a certificate that is not valid at a time.

    Raises   AttestationError
    """
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise refused(
            f"certificate {named(certificate)}: time",
            expected=f"{first.isoformat()} to {last.isoformat()}",
            found=now.isoformat(timespec="seconds"),
            remedy="fetch new evidence, or set the clock",
        )


def _require_known_extensions(certificate: x509.Certificate) -> None:
    with parsing(f"certificate {named(certificate)}: is damaged", kind=AttestationError):
        extensions = list(certificate.extensions)
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN_CRITICAL):
            raise AttestationError(
                f"certificate {named(certificate)}: has a critical extension "
                f"{extension.oid.dotted_string} that this version does not know"
            )


def require_p(key: object, curve: type[ec.EllipticCurve], what: str) -> ec.EllipticCurvePublicKey:
    """A public key on the curve that the format prescribes.

    Raises   AttestationError
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
        raise AttestationError(f"{what}: its key is not on the curve {curve.name}")
    return key


@dataclass(frozen=True)
class RevocationList:
    """A list of revoked certificates, and when the next one comes."""

    crl: x509.CertificateRevocationList
    not_after: datetime

    @classmethod
    def load(cls, data: bytes, what: str) -> "RevocationList":
        """From DER or PEM.

        Raises   AttestationError
        """
        with parsing(f"{what}: is not a list of revoked certificates", kind=AttestationError):
            pem = data.lstrip().startswith(b"-----BEGIN")
            crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
            ends = crl.next_update_utc
            partial = [one.oid.dotted_string for one in crl.extensions if one.critical]
        if partial:
            # Of a change to a list, or a list of some certificates only.
            raise AttestationError(
                f"{what}: has a critical extension {partial[0]}; give the issuer's whole list"
            )
        if ends is None:
            raise AttestationError(f"{what}: does not say when the next list comes")
        return cls(crl, ends)

    def verify(self, issuer: x509.Certificate, *, now: datetime) -> None:
        """Check that the list is the issuer's, and of this time.

        Raises   AttestationError
        """
        with parsing("list of revoked certificates: is damaged", kind=AttestationError):
            key = issuer.public_key()
            valid = self.crl.issuer == issuer.subject and self.crl.is_signature_valid(key)  # type: ignore[arg-type]
        if not valid:
            raise AttestationError(
                f"list of revoked certificates: is not signed by {named(issuer)}"
            )
        if not self.crl.last_update_utc <= now <= self.not_after:
            raise refused(
                "list of revoked certificates: time",
                expected=f"{self.crl.last_update_utc.isoformat()} to {self.not_after.isoformat()}",
                found=now.isoformat(timespec="seconds"),
                remedy="fetch a new list",
            )

    def lists(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is on the list."""
        found = self.crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        return found is not None


def to_der(certificate: x509.Certificate) -> bytes:
    """The certificate's own bytes."""
    return certificate.public_bytes(Encoding.DER)
