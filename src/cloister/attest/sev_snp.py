"""AMD SEV-SNP: an attestation report, versions 2 to 5, signed by a VCEK or VLEK.

Source   AMD SEV Secure Nested Paging Firmware ABI (56860), section 7.3, tables 21 to 24; VCEK
         Certificate and KDS Interface Specification (57230), section 3
"""

import hashlib
import json
import struct
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import der
from cloister.attest.certificates import (
    fingerprint,
    load_certificate,
    require_p,
    roots,
    verify_chain,
)
from cloister.attest.check_tree import Check, refused, require_equal
from cloister.attest.collateral import Collateral
from cloister.attest.fields import Fields
from cloister.attest.signatures import verify_ecdsa
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.base.reading import parsing
from cloister.errors import AttestationError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
VERSIONS = range(2, 6)
SCALAR_BYTES = 72
ECDSA_P384_SHA384 = 1
VCEK, VLEK = 0, 1
WHAT = "SEV-SNP report"

AZURE_MAGIC = b"HCLA"
AZURE_HEADER = 32
AZURE_SNP = 2
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}

_PRODUCTS = {
    "Milan": (0x19, range(0x10)),
    "Genoa": (0x19, (*range(0x10, 0x20), *range(0xA0, 0xB0))),
    "Turin": (0x1A, range(0x12)),
}
"""Family and models of the processors that AMD's root of this name is for."""
_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID, _CSP = _OID + "2", _OID + "4", _OID + "5"
_LEVELS = {
    "bootloader": _OID + "3.1",
    "tee": _OID + "3.2",
    "snp": _OID + "3.3",
    "microcode": _OID + "3.8",
    "fmc": _OID + "3.9",
}
_TURIN_HWID_BYTES = 8
_IA5_STRING = 0x16
_CERTIFICATE_TABLE = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
}
_POLICY_BITS = {
    "smt_allowed": 16,
    "migratable": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl_allowed": 21,
    "aes_256_xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}
_POLICY_ONE = 17
_PLATFORM_BITS = {
    "smt_enabled": 0,
    "tsme_enabled": 1,
    "ecc_enabled": 2,
    "platform_rapl_disabled": 3,
    "platform_ciphertext_hiding": 4,
    "alias_check_complete": 5,
    "tio_enabled": 7,
}
_KNOWN_PLATFORM = sum(1 << bit for bit in _PLATFORM_BITS.values())
_KNOWN_KEYS = 0b11111
"""Author key enabled, chip key masked, and the three bits of the signing key."""


@dataclass(frozen=True)
class SnpEvidence:
    """A report, with what came beside it.

    runtime   the JSON that Azure's paravisor adds, which report_data names
    trailing  bytes behind the report or Azure's blob that are no certificates
    """

    report: Fields
    certificates: tuple[x509.Certificate, ...] = ()
    runtime: bytes | None = None
    trailing: int = 0


def find(data: bytes) -> SnpEvidence | None:
    """The report in a file: bare, with a certificate table, in PEM, or in Azure's blob."""
    _, begins, rest = data.partition(b"-----BEGIN REPORT-----")
    text, ends, _ = rest.partition(b"-----END REPORT-----")
    if begins and ends:
        with parsing(f"{WHAT}: is damaged", kind=AttestationError):
            return SnpEvidence(_report(b64decode(b"".join(text.split()), validate=True)))
    if data.startswith(AZURE_MAGIC):
        return _azure(data)
    if len(data) >= REPORT_BYTES and _looks_like(data):
        certificates = tuple(_table(data[REPORT_BYTES:]))
        trailing = 0 if certificates else len(data) - REPORT_BYTES
        return SnpEvidence(_report(data[:REPORT_BYTES]), certificates, trailing=trailing)
    return None


def _looks_like(data: bytes) -> bool:
    version, algorithm = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 0x34)[0]
    policy = struct.unpack_from("<Q", data, 8)[0]
    return version < 256 and algorithm == ECDSA_P384_SHA384 and bool(policy >> _POLICY_ONE & 1)


def _report(data: bytes) -> Fields:
    report = Fields(data, WHAT)
    if len(data) > REPORT_BYTES:
        # Base64 groups of three bytes leave a zero behind it.
        report.require_zeros(REPORT_BYTES, len(data))
    return Fields(report.raw(0, REPORT_BYTES), WHAT)


def _azure(data: bytes) -> SnpEvidence:
    """Azure's blob: header, report, and a runtime document whose digest is the report data."""
    blob = Fields(data, "Azure attestation blob")
    report = Fields(blob.raw(AZURE_HEADER, REPORT_BYTES), WHAT)
    at = AZURE_HEADER + REPORT_BYTES
    kind, hashed, size = (blob.number(at + offset, 4) for offset in (8, 12, 16))
    require_equal("Azure attestation blob: report type", kind, AZURE_SNP, remedy="give an SNP one")
    if hashed not in _HASHES:
        raise refused(
            "Azure attestation blob: digest", expected=sorted(_HASHES), found=hashed,
            remedy="this version does not know it",
        )  # fmt: skip
    runtime = blob.raw(at + 20, size)
    digest = hashlib.new(_HASHES[hashed], runtime).digest()
    require_equal(
        "Azure attestation blob: digest of the runtime document",
        digest.ljust(64, b"\0"),
        report.raw(0x50, 64),
        remedy="the document was changed; fetch new evidence",
    )
    return SnpEvidence(report, runtime=runtime, trailing=len(data) - at - 20 - size)


def _table(data: bytes) -> Iterator[x509.Certificate]:
    """The certificates of an extended report: a table of GUIDs, offsets and lengths."""
    table = Fields(data, "SEV-SNP certificate table")
    at, seen = 0, set()
    while len(data) >= at + 24:
        guid = UUID(bytes_le=table.raw(at, 16))
        offset, size = table.number(at + 16, 4), table.number(at + 20, 4)
        at += 24
        if not guid.int:
            return
        if guid not in _CERTIFICATE_TABLE or not size:
            continue
        if guid in seen:
            raise AttestationError(
                f"SEV-SNP certificate table: has two certificates {_CERTIFICATE_TABLE[guid]}"
            )
        seen.add(guid)
        yield load_certificate(table.raw(offset, size), _CERTIFICATE_TABLE[guid])


def verify(
    found: SnpEvidence, collateral: Collateral, *, now: datetime, check: Check
) -> VerifiedEvidence:
    """Verify a report: its form, its signature, and that its certificate is of this very chip.

    Raises   AttestationError
    """
    report = found.report
    check.expect(
        "form", "product", "certificate chain", "revocation", "certificate fits the report",
        "signature",
    )  # fmt: skip
    with check.step("form"):
        _require_form(report)
    leaf, others = _leaf(report, [*found.certificates, *collateral.certificates])
    with check.step("product"):
        product = _product(report, leaf)
    with check.step("certificate chain") as step:
        chain = [leaf, *_authorities(leaf, others)]
        not_after = verify_chain(chain, roots(f"amd-{product.lower()}"), now=now, check=step)
    revocation, not_after = _revocation(chain, collateral, product, now, not_after, check)
    with check.step("certificate fits the report"):
        _require_fit(report, leaf, product)
    with check.step("signature"):
        _verify_signature(report, leaf)
    claims = {
        **_claims(report, product),
        "trailing_bytes": found.trailing,
        "paravisor": found.runtime is not None,
    }
    if _common_name(leaf) == "SEV-VLEK":
        claims["csp_id"] = _text(leaf, _CSP)
    report_data = report.raw(0x50, 64)
    if found.runtime is not None:
        report_data = _runtime(found.runtime, report_data, claims)
    return VerifiedEvidence(
        Format.SEV_SNP, report_data, claims, Rooted.HARDWARE, False, revocation, not_after, check
    )


def _runtime(document: bytes, report_data: bytes, claims: dict[str, object]) -> bytes:
    """What the guest bound, which Azure's paravisor puts into the document that the report names.

    The report data are the document's digest. A document of an old paravisor has no bytes of the
    guest: nothing but that digest is bound then.
    """
    with parsing("Azure attestation blob: runtime document", kind=AttestationError):
        found = json.loads(document, object_pairs_hook=_once)
        claims["runtime"] = json.dumps(found, sort_keys=True)
        bound = found.get("user-data", "")
        bound = bytes.fromhex(bound)
    if bound and len(bound) != len(report_data):
        raise AttestationError(
            f"Azure attestation blob: user-data: has {len(bound)} bytes, of {len(report_data)}"
        )
    return bound or report_data


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, in which no name stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _require_form(report: Fields) -> None:
    version = report.number(0, 4)
    if version not in VERSIONS:
        raise refused(
            f"{WHAT}: version", expected="2 to 5", found=version,
            remedy="this version of Cloister does not know it",
        )  # fmt: skip
    require_equal(
        f"{WHAT}: signature algorithm", report.number(0x34, 4), ECDSA_P384_SHA384,
        remedy="only ECDSA P-384 with SHA-384 is defined",
    )  # fmt: skip
    if not report.number(8, 8) >> _POLICY_ONE & 1:
        raise AttestationError(f"{WHAT}: bit 17 of the guest policy must be one")
    if report.number(8, 8) >> (max(_POLICY_BITS.values()) + 1):
        raise AttestationError(f"{WHAT}: guest policy has bits that this version does not know")
    if report.number(0x40, 8) & ~_KNOWN_PLATFORM:
        raise AttestationError(f"{WHAT}: platform has bits that this version does not know")
    keys = report.number(0x48, 4)
    if keys & ~_KNOWN_KEYS:
        raise AttestationError(f"{WHAT}: key information has bits that this version does not know")
    if not keys & 1 and any(report.raw(0x110, 48)):
        raise AttestationError(f"{WHAT}: has an author key's digest, and says that there is none")
    report.require_zeros(0x4C, 0x50)
    # Since version 3 family, model and stepping stand here; since version 5 two mitigation vectors.
    report.require_zeros(0x18B if version >= 3 else 0x188, 0x1A0)
    report.require_zeros(0x1EB, 0x1EC)
    report.require_zeros(0x1EF, 0x1F0)
    report.require_zeros(0x208 if version >= 5 else 0x1F8, SIGNED_BYTES)
    for begin in (SIGNED_BYTES, SIGNED_BYTES + SCALAR_BYTES):
        report.require_zeros(begin + 48, begin + SCALAR_BYTES)
    report.require_zeros(SIGNED_BYTES + 2 * SCALAR_BYTES, REPORT_BYTES)


def _leaf(
    report: Fields, given: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """The certificate of the key that signed the report, by its kind, and the others."""
    signer = report.number(0x48, 4) >> 2 & 7
    kinds = {VCEK: "SEV-VCEK", VLEK: "SEV-VLEK"}
    if signer not in kinds:
        raise refused(
            f"{WHAT}: signing key", expected=sorted(kinds.values()), found=signer,
            remedy="a report that no chip signed proves nothing",
        )  # fmt: skip
    leaves = [one for one in given if _common_name(one) == kinds[signer]]
    if not leaves:
        raise AttestationError(
            f"{WHAT}: no {kinds[signer]} certificate is given; fetch the one of this chip and TCB "
            "from AMD's key distribution service, and put it in --collateral"
        )
    if len({fingerprint(one) for one in leaves}) > 1:
        raise AttestationError(f"{WHAT}: several {kinds[signer]} certificates are given; give one")
    return leaves[0], [one for one in given if one not in leaves]


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _authorities(
    leaf: x509.Certificate, others: Sequence[x509.Certificate]
) -> Iterator[x509.Certificate]:
    """The ASK or ASVK that issued the leaf; the root is pinned."""
    for one in others:
        if one.subject == leaf.issuer:
            yield one
            return
    raise AttestationError(
        f"{WHAT}: the certificate of {leaf.issuer.rfc4514_string()} is missing; put AMD's chain "
        "of this product in --collateral"
    )


def _product(report: Fields, leaf: x509.Certificate) -> str:
    """Milan, Genoa or Turin: by the issuer's name, and by the report where it says so."""
    issuer = next(
        (str(name.value) for name in leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)),
        "",
    )
    product = issuer.rsplit("-", 1)[-1]
    if product not in _PRODUCTS:
        raise refused(
            f"{WHAT}: product", expected=list(_PRODUCTS), found=issuer,
            remedy="no root of AMD is pinned for it",
        )  # fmt: skip
    named = _text(leaf, _PRODUCT_NAME)
    # "Milan-B0" of a chip, "Milan" of a provider's key and of Turin.
    require_equal(
        f"certificate {_common_name(leaf)}: product name", named.split("-")[0], product,
        remedy="its issuer is of another product",
    )  # fmt: skip
    if report.number(0, 4) >= 3:
        family, models = _PRODUCTS[product]
        require_equal(
            f"{WHAT}: processor family", report.number(0x188, 1), family,
            remedy=f"a certificate of {product} does not fit",
        )  # fmt: skip
        if (model := report.number(0x189, 1)) not in models:
            raise refused(
                f"{WHAT}: processor model", expected=product, found=f"{model:#x}",
                remedy="the certificate is of another product",
            )  # fmt: skip
    return product


def _revocation(
    chain: Sequence[x509.Certificate],
    collateral: Collateral,
    product: str,
    now: datetime,
    not_after: datetime,
    check: Check,
) -> tuple[Revocation, datetime]:
    """What AMD's list says of the chain, if it is there."""
    (root,) = roots(f"amd-{product.lower()}")
    lists = [one for one in collateral.revocation_lists if one.crl.issuer == root.subject]
    if not lists:
        check.leave("revocation", "no list of AMD's revoked certificates is given")
        return Revocation.UNKNOWN, not_after
    with check.step("revocation"):
        for one in lists:
            one.verify(root, now=now)
            if any(one.lists(certificate) for certificate in chain):
                raise AttestationError(f"{WHAT}: AMD has revoked a certificate of its chain")
    return Revocation.GOOD, min(not_after, *(one.not_after for one in lists))


def tcb_levels(value: int, product: str) -> dict[str, int]:
    """A TCB version's levels by name; bytes without a meaning must be zero.

    Raises   AttestationError
    """
    places = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
    if product == "Turin":
        places = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
    octets = value.to_bytes(8, "little")
    if any(octets[i] for i in range(8) if i not in places.values()):
        raise AttestationError(f"{WHAT}: TCB version {value:#x} has levels that are not known")
    return {name: octets[place] for name, place in places.items()}


def _require_fit(report: Fields, leaf: x509.Certificate, product: str) -> None:
    """The certificate is of the chip and of the TCB that the report states."""
    for name, level in tcb_levels(report.number(0x180, 8), product).items():
        require_equal(
            f"certificate {_common_name(leaf)}: TCB level {name}", _integer(leaf, _LEVELS[name]),
            level, remedy="fetch the certificate of the TCB that the report states",
        )  # fmt: skip
    if _common_name(leaf) == "SEV-VLEK":
        return  # of a cloud provider's keys, which name no chip
    if report.number(0x48, 4) >> 1 & 1:
        raise AttestationError(
            f"{WHAT}: the platform masks its chip key, so no VCEK can have signed the report"
        )
    chip = report.raw(0x1A0, 64)
    if not any(chip):
        raise AttestationError(
            f"{WHAT}: the platform hides its chip id, so no certificate can be matched to it"
        )
    hwid = _extension(leaf, _HWID)
    if hwid[:2] == bytes([der.OCTETS, 64]):
        hwid = hwid[2:]
    if product == "Turin" and len(hwid) == _TURIN_HWID_BYTES:
        hwid = hwid.ljust(64, b"\0")
    require_equal(
        f"certificate {_common_name(leaf)}: chip id", hwid, chip,
        remedy="fetch the certificate of this chip",
    )  # fmt: skip


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    with parsing(f"certificate {_common_name(certificate)}: is damaged", kind=AttestationError):
        for extension in certificate.extensions:
            if extension.oid.dotted_string == oid:
                value = extension.value
                if isinstance(value, x509.UnrecognizedExtension):
                    return value.value
    raise AttestationError(
        f"certificate {_common_name(certificate)}: lacks AMD's extension {oid}; it is no VCEK or "
        "VLEK of this product"
    )


def _text(certificate: x509.Certificate, oid: str) -> str:
    """An extension that is a DER IA5String."""
    what = f"certificate {_common_name(certificate)}: extension {oid}"
    text = der.only(_extension(certificate, oid), _IA5_STRING, what)
    if not text.isascii():
        raise AttestationError(f"{what}: is no text")
    return text.decode()


def _integer(certificate: x509.Certificate, oid: str) -> int:
    """An extension that is a DER INTEGER of a byte."""
    data = _extension(certificate, oid)
    # 02 01 vv, or 02 02 00 vv from 128 on.
    if data[:2] == b"\x02\x01" and len(data) == 3 and data[2] < 0x80:
        return data[2]
    if data[:3] == b"\x02\x02\x00" and len(data) == 4 and data[3] >= 0x80:
        return data[3]
    raise AttestationError(
        f"certificate {_common_name(certificate)}: extension {oid} is no number of one byte"
    )


def _verify_signature(report: Fields, leaf: x509.Certificate) -> None:
    # AMD writes both numbers with their lowest byte first.
    r, s = (report.raw(SIGNED_BYTES + i * SCALAR_BYTES, 48)[::-1] for i in (0, 1))
    verify_ecdsa(
        require_p(leaf.public_key(), ec.SECP384R1, f"certificate {_common_name(leaf)}"),
        r + s,
        report.raw(0, SIGNED_BYTES),
        digest=hashes.SHA384(),
        wrong=f"{WHAT}: signature is wrong; the report was changed, or is of another chip or TCB",
    )


def _version(report: Fields, offset: int) -> str:
    """A firmware's version; its build stands first."""
    build, minor, major = (report.number(offset + i, 1) for i in range(3))
    return f"{major}.{minor}.{build}"


def _claims(report: Fields, product: str) -> dict[str, object]:
    policy, platform = report.number(8, 8), report.number(0x40, 8)
    keys = report.number(0x48, 4)
    claims: dict[str, object] = {
        "version": report.number(0, 4),
        "product": product,
        "guest_svn": report.number(4, 4),
        "abi": f"{policy >> 8 & 255}.{policy & 255}",
        "vmpl": report.number(0x30, 4),
        "measurement": report.raw(0x90, 48),
        "host_data": report.raw(0xC0, 32),
        "id_key_digest": report.raw(0xE0, 48),
        "author_key_digest": report.raw(0x110, 48),
        "author_key_enabled": bool(keys & 1),
        "family_id": report.raw(0x10, 16),
        "image_id": report.raw(0x20, 16),
        "report_id": report.raw(0x140, 32),
        "migration_agent": report.raw(0x160, 32),
        "chip_id": report.raw(0x1A0, 64),
        "chip_key_masked": bool(keys >> 1 & 1),
        "current_version": _version(report, 0x1E8),
        "committed_version": _version(report, 0x1EC),
        "signing_key": "VLEK" if keys >> 2 & 7 == VLEK else "VCEK",
    }
    claims |= {name: bool(policy >> bit & 1) for name, bit in _POLICY_BITS.items()}
    claims |= {name: bool(platform >> bit & 1) for name, bit in _PLATFORM_BITS.items()}
    for name, offset in (
        ("current_tcb", 0x38), ("reported_tcb", 0x180), ("committed_tcb", 0x1E0),
        ("launch_tcb", 0x1F0),
    ):  # fmt: skip
        claims[name] = tcb_levels(report.number(offset, 8), product)
    if report.number(0, 4) >= 5:
        claims["launch_mitigations"] = report.number(0x1F8, 8)
        claims["current_mitigations"] = report.number(0x200, 8)
    return claims
