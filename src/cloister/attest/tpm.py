"""TPM 2.0: a quote of platform configuration registers, signed by a key of the TPM.

A quote says how a machine started, and nothing of what reads its memory since. No vendor's root is
pinned, and programs play TPMs: the evidence is rooted in software, whoever made it, and a policy
has to name the key.

Source   TCG, Trusted Platform Module Library, part 1: Architecture (1.59), section 31; part 2
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import cbor2
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.cbor import only_item
from cloister.attest.certificates import load_certificate, require_valid_at
from cloister.attest.check_tree import Check, require_equal
from cloister.attest.report_data import require_report_data
from cloister.attest.tpm_structures import (
    ENDORSEMENT,
    HASHES,
    OWNER,
    PLATFORM,
    QUOTE,
    TpmKey,
    TpmStatement,
    quoted_registers,
)
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.base.reading import parsing
from cloister.errors import AttestationError

KIND = "cloister-tpm-1"
REGISTER_BYTES = 32
REGISTERS = (*range(16), *range(17, 23))
"""Those that a running system cannot set back: every program resets 16 and 23."""
MAX_BYTES = 16 * 1024
WHAT = "TPM quote"
_FIELDS = {"kind", "statement", "signature", "key", "parent", "registers", "report_data"}
_HIERARCHIES = {
    handle.to_bytes(4, "big"): name
    for handle, name in (
        (OWNER, "owner"), (ENDORSEMENT, "endorsement"), (PLATFORM, "platform"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class TpmEvidence:
    """A quote, and what belongs to it: its key, the registers' values, the bytes that it binds.

    statement     TPMS_ATTEST; signature: TPMT_SIGNATURE; key: TPMT_PUBLIC
    parent        of the key: the handle of a hierarchy, or the qualified name of another key
    registers     values of the SHA-256 bank by index
    certificate   of the key, in DER
    """

    statement: bytes
    signature: bytes
    key: bytes
    parent: bytes
    registers: Mapping[int, bytes]
    report_data: bytes
    certificate: bytes | None = None

    def encode(self) -> bytes:
        """The evidence in CBOR; it has one form."""
        fields: dict[str, object] = {
            "kind": KIND, "statement": self.statement, "signature": self.signature,
            "key": self.key, "parent": self.parent,
            "registers": dict(sorted(self.registers.items())), "report_data": self.report_data,
        }  # fmt: skip
        if self.certificate is not None:
            fields["certificate"] = self.certificate
        return cbor2.dumps(fields)

    @classmethod
    def decode(cls, data: bytes) -> "TpmEvidence":
        """Read the evidence.

        Raises   AttestationError for every other form
        """
        if len(data) > MAX_BYTES:
            raise AttestationError(f"{WHAT}: {len(data)} bytes are more than it ever has")
        found = only_item(data, WHAT)
        with parsing(f"{WHAT}: is damaged", kind=AttestationError):
            if (
                not isinstance(found, dict)
                or set(found) - {"certificate"} != _FIELDS
                or found.pop("kind") != KIND
            ):
                raise ValueError("its fields are others")
            registers = found["registers"]
            texts = [found[name] for name in found if name != "registers"]
            if not all(isinstance(one, bytes) for one in (*texts, *registers.values())):
                raise ValueError("a field is no byte string")
            if any(type(index) is not int or not 0 <= index < 24 for index in registers):
                raise ValueError("a register has no number from 0 to 23")
            evidence = cls(**found)
        if evidence.encode() != data:
            raise AttestationError(f"{WHAT}: is not encoded in its one form; it was changed")
        return evidence


def looks_like(data: bytes) -> bool:
    """Whether bytes begin like a quote in our container."""
    return data[1:].startswith(cbor2.dumps("kind") + cbor2.dumps(KIND))


def qualifying(report_data: bytes) -> bytes:
    """What a TPM is asked to sign for 64 bytes, which are more than it takes."""
    return hashlib.sha256(report_data).digest()


def verify(data: bytes, *, now: datetime, check: Check) -> VerifiedEvidence:
    """Verify a quote: its key's form, its signature, the bytes that it binds, and its registers.

    Raises   AttestationError
    """
    check.expect("form", "key", "signature", "bound bytes", "registers", "certificate", "root")
    with check.step("form"):
        evidence = TpmEvidence.decode(data)
        require_report_data(evidence.report_data)
        statement = TpmStatement.parse(evidence.statement, QUOTE)
        registers, digest = quoted_registers(statement.fields)
    with check.step("key"):
        key = TpmKey.parse(evidence.key)
        require_equal(
            f"{WHAT}: qualified name of the key", statement.qualified_signer,
            key.qualified(evidence.parent), remedy="the key beside it is not the one that signed",
        )  # fmt: skip
    hierarchy = _HIERARCHIES.get(evidence.parent, "other")
    with check.step("signature"):
        key.verify(evidence.signature, evidence.statement)
    with check.step("bound bytes"):
        require_equal(
            f"{WHAT}: qualifying data", statement.qualifying, qualifying(evidence.report_data),
            remedy="the report data beside it is not what the TPM signed",
        )  # fmt: skip
    with check.step("registers"):
        _require_registers(evidence.registers, registers, digest, key)
    ends = _certificate(evidence, key, now, check)
    check.leave(
        "root", "no vendor's root is pinned: a program may play the TPM; the policy's keys decide"
    )
    claims: dict[str, object] = {
        "key": key.name,
        "hierarchy": hierarchy,
        "clock_ms": statement.clock_ms,
        "clock_safe": statement.clock_safe,
        **{f"pcr{index}": evidence.registers[index] for index in registers},
    }
    if hierarchy in ("endorsement", "platform"):
        # Of keys elsewhere a TPM states these only in a form that it alone can read.
        claims |= {
            "firmware_version": statement.firmware_version,
            "reset_count": statement.reset_count,
            "restart_count": statement.restart_count,
        }
    if evidence.certificate is not None:
        claims["certificate"] = hashlib.sha256(evidence.certificate).digest()
    return VerifiedEvidence(
        Format.TPM, evidence.report_data, claims, Rooted.SOFTWARE, False, Revocation.UNKNOWN,
        ends, check,
    )  # fmt: skip


def _require_registers(
    found: Mapping[int, bytes], quoted: list[int], digest: bytes, key: TpmKey
) -> None:
    """The values that stand beside the quote are those that it is of, and no others."""
    require_equal(
        f"{WHAT}: registers", sorted(found), quoted, remedy="give the value of each quoted one"
    )
    for index, value in found.items():
        require_equal(
            f"{WHAT}: bytes of register {index}", len(value), REGISTER_BYTES, remedy="give SHA-256"
        )
    values = b"".join(found[index] for index in quoted)
    require_equal(
        f"{WHAT}: digest of the registers", digest,
        hashlib.new(HASHES[key.scheme[1]]().name, values).digest(),
        remedy="their values beside it are not those that the TPM signed",
    )  # fmt: skip


def _certificate(evidence: TpmEvidence, key: TpmKey, now: datetime, check: Check) -> datetime:
    """Check that the certificate, if there is one, is of this key; who made it is not known."""
    if evidence.certificate is None:
        check.leave("certificate", "the key has none")
        return datetime.max.replace(tzinfo=now.tzinfo)
    with check.step("certificate") as step:
        found = load_certificate(evidence.certificate, "TPM certificate")
        require_valid_at(found, now)
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with parsing("TPM certificate: its key", kind=AttestationError):
            theirs = found.public_key().public_bytes(*form)
        require_equal(
            "TPM certificate: key", theirs, key.key.public_bytes(*form),
            remedy="it is of another key",
        )  # fmt: skip
        step.detail = f"of this key, by {found.issuer.rfc4514_string()}, which is not verified"
    return found.not_valid_after_utc
