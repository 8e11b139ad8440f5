"""AWS Nitro Enclaves: an attestation document, CBOR in a COSE_Sign1 by ES384.

Source   AWS Nitro Enclaves, "Attestation process", sections 2 and 3; RFC 9052, section 4.4
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.cbor import first_item, only_item
from cloister.attest.certificates import load_certificate, require_p, roots, verify_chain
from cloister.attest.check_tree import Check, refused, require_equal
from cloister.attest.signatures import verify_ecdsa
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.errors import AttestationError

MAX_BYTES = 64 * 1024
WHAT = "Nitro document"
_ES384 = -35
_ALGORITHM = 1
_TAG = b"\xd2"
"""The head of an item that is tagged as a COSE_Sign1, which may be left out."""
_PCR_BYTES = 48
_MAX_PCRS = 32


@dataclass(frozen=True)
class NitroDocument:
    """The fields of a document."""

    module_id: str
    digest: str
    timestamp: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: list[bytes]
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None


@dataclass(frozen=True)
class CoseSign1:
    """A COSE_Sign1, taken apart."""

    protected: bytes
    payload: bytes
    signature: bytes


def looks_like(data: bytes) -> bool:
    """Whether bytes begin like a COSE_Sign1 of ES384: an array of four, tagged or not."""
    return data.removeprefix(_TAG).startswith(b"\x84\x44\xa1\x01\x38\x22")


def parse(data: bytes) -> tuple[CoseSign1, int]:
    """A document's envelope taken apart, and how many bytes follow it, which nobody signed.

    Raises   AttestationError
    """
    if len(data) > MAX_BYTES:
        raise AttestationError(f"{WHAT}: {len(data)} bytes are more than it ever has")
    untagged = data.removeprefix(_TAG)
    found, end = first_item(untagged, WHAT)
    if not isinstance(found, list) or len(found) != 4:
        raise AttestationError(f"{WHAT}: is no COSE_Sign1 of four parts")
    protected, unprotected, payload, signature = found
    if not all(isinstance(one, bytes) for one in (protected, payload, signature)):
        raise AttestationError(f"{WHAT}: parts of its COSE_Sign1 are not byte strings")
    require_equal(f"{WHAT}: unprotected header", unprotected, {}, remedy="nobody signed it")
    require_equal(
        f"{WHAT}: protected header", only_item(protected, f"{WHAT}: protected header"),
        {_ALGORITHM: _ES384}, remedy="only ES384 is defined",
    )  # fmt: skip
    return CoseSign1(protected, payload, signature), len(untagged) - end


def verify(data: bytes, *, now: datetime, check: Check) -> VerifiedEvidence:
    """Verify a document: form, chain to AWS's root, signature.

    A leaf certificate lives three hours, in which AWS revokes none: revocation is not known.

    Raises   AttestationError
    """
    check.expect("form", "certificate chain", "signature", "revocation")
    with check.step("form"):
        envelope, trailing = parse(data)
        document = _document(envelope.payload)
    leaf = load_certificate(document.certificate, f"{WHAT}: certificate")
    above = [load_certificate(one, f"{WHAT}: cabundle") for one in document.cabundle]
    with check.step("certificate chain") as step:
        # The bundle begins with the root.
        not_after = verify_chain([leaf, *reversed(above)], roots("nitro"), now=now, check=step)
    with check.step("signature"):
        signed = cbor2.dumps(["Signature1", envelope.protected, b"", envelope.payload])
        verify_ecdsa(
            require_p(leaf.public_key(), ec.SECP384R1, f"{WHAT}: certificate"),
            envelope.signature, signed, digest=hashes.SHA384(),
            wrong=f"{WHAT}: signature is wrong; it was changed",
        )  # fmt: skip
    check.leave("revocation", "AWS publishes none; a leaf certificate lives three hours")
    pcrs = document.pcrs
    made = datetime.fromtimestamp(document.timestamp / 1000, UTC)
    claims = {
        "module_id": document.module_id,
        "trailing_bytes": trailing,
        "timestamp": made.isoformat(),
        **{f"pcr{index}": value for index, value in sorted(pcrs.items())},
        "debug": all(not any(pcrs.get(index, b"")) for index in range(3)),
        "user_data": document.user_data or b"",
        "nonce": document.nonce or b"",
        "public_key": document.public_key or b"",
    }
    return VerifiedEvidence(
        Format.NITRO, document.user_data or b"", claims, Rooted.HARDWARE, False,
        Revocation.UNKNOWN, not_after, check,
    )  # fmt: skip


def _document(payload: bytes) -> NitroDocument:
    """The fields of a document, each of the type that AWS's syntax gives it."""
    found = only_item(payload, WHAT)
    if not isinstance(found, dict):
        raise AttestationError(f"{WHAT}: is no map")
    optional = {"public_key", "user_data", "nonce"}
    needed = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
    if odd := {str(name) for name in found} - needed - optional or needed - set(found):
        raise AttestationError(f"{WHAT}: field {min(odd)} is missing or not known")
    _require(isinstance(found["module_id"], str) and found["module_id"], "module_id")
    require_equal(f"{WHAT}: digest", found["digest"], "SHA384", remedy="only that is defined")
    _require(type(found["timestamp"]) is int and 0 < found["timestamp"] < 1 << 45, "timestamp")
    pcrs = found["pcrs"]
    _require(isinstance(pcrs, dict) and 1 <= len(pcrs) <= _MAX_PCRS, "pcrs")
    for index, value in pcrs.items():
        fits = isinstance(value, bytes) and len(value) == _PCR_BYTES
        _require(type(index) is int and 0 <= index < _MAX_PCRS and fits, "pcrs")
    _require(isinstance(found["certificate"], bytes), "certificate")
    bundle = found["cabundle"]
    _require(isinstance(bundle, list) and 1 <= len(bundle) <= 8, "cabundle")
    _require(all(isinstance(one, bytes) for one in bundle), "cabundle")
    for name in optional:
        value = found.get(name)
        _require(value is None or (isinstance(value, bytes) and len(value) <= 1024), name)
    return NitroDocument(**found)


def _require(holds: object, name: str) -> None:
    if not holds:
        raise refused(
            f"{WHAT}: {name}", expected="what AWS's syntax says", found="something else",
            remedy="it was damaged",
        )  # fmt: skip
