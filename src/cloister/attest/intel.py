"""Verifying Intel SGX and TDX quotes.

Source   Intel TDX and SGX DCAP Quote Verification Library; the steps are those of its
         documentation, "Quote verification process"
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.certificates import (
    load_chain,
    named,
    require_p,
    roots,
    verify_chain,
)
from cloister.attest.check_tree import Check, refused, require_equal
from cloister.attest.collateral import Collateral, SignedDocument
from cloister.attest.event_log import replay
from cloister.attest.fields import Fields
from cloister.attest.intel_quote import TDX15_BODY, Quote, parse
from cloister.attest.intel_tcb import (
    IntelDocument,
    PlatformTcb,
    TcbLevel,
    evaluate,
    names_platform,
    platform_tcb,
    read_document,
)
from cloister.attest.signatures import verify_ecdsa
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.errors import AttestationError

ROOTS = "intel"
_DOCUMENTS = {"tcb_info": "TCB information", "qe_identity": "identity of the quoting enclave"}
_QE_SIGNERS = {
    False: (bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"), 1),
    True: (bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"), 2),
}
"""Who signed Intel's quoting enclave, and its product number: of SGX, and of TDX."""
_INIT, _DEBUG = 1, 2
_TD_ATTRIBUTES = {
    "icssd": 16, "lass": 27, "septve_disabled": 28, "migratable": 29, "protection_keys": 30,
    "key_locker": 31, "tpa": 62, "perfmon": 63,
}  # fmt: skip
_TD_DEBUG_GROUP = 0xFF
_KNOWN_TD_ATTRIBUTES = _TD_DEBUG_GROUP | sum(1 << bit for bit in _TD_ATTRIBUTES.values())
_PCK_NAME = "SGX PCK Certificate"
_TDX_REGISTERS = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


def verify(data: bytes, collateral: Collateral, *, now: datetime, check: Check) -> VerifiedEvidence:
    """Verify a quote: signatures up to Intel's root, and the age of the platform's firmware.

    Without Intel's collateral the TCB is not judged and revocation is unknown; a policy refuses
    such evidence unless it says otherwise.

    Raises   AttestationError
    """
    check.expect(
        "form", "certificate chain", "quoting enclave", "attestation key", "signature",
        "revocation", "TCB",
    )  # fmt: skip
    with check.step("form"):
        quote = parse(data)
        if quote.is_tdx:
            _require_module(quote.body)
    pinned = roots(ROOTS)
    chain = load_chain(quote.pck_chain.rstrip(b"\0"), pinned, f"{quote.what}: PCK chain")
    with check.step("certificate chain") as step:
        not_after = verify_chain(chain, pinned, now=now, check=step)
    pck = chain[0]
    with check.step("quoting enclave"):
        # Intel's other certificates have no such extension, and make no quote.
        platform = platform_tcb(pck)
        if _PCK_NAME not in named(pck):
            raise refused(
                f"certificate {named(pck)}: name", expected=_PCK_NAME, found=named(pck),
                remedy="Intel did not issue it for quotes",
            )  # fmt: skip
        key = require_p(pck.public_key(), ec.SECP256R1, f"certificate {named(pck)}")
        _verify(
            key, quote.qe_signature, quote.qe_report.data,
            f"{quote.what}: the report of the quoting enclave is not signed by its platform",
        )  # fmt: skip
        _require_quoting_enclave(quote)
    with check.step("attestation key"):
        require_equal(
            f"{quote.what}: digest of the attestation key",
            quote.qe_report.raw(320, 64),
            sha256(quote.key + quote.auth_data).digest() + bytes(32),
            remedy="the quoting enclave did not make it",
        )
    with check.step("signature"):
        _verify(
            _point(quote.key), quote.signature, quote.signed,
            f"{quote.what}: signature is wrong; the quote was changed",
        )  # fmt: skip
    revocation, not_after = _revocation(chain, collateral, now, not_after, check)
    level, not_after = _tcb(quote, platform, collateral, now, not_after, check)
    claims = _tdx_claims(quote) if quote.is_tdx else _sgx_claims(quote)
    claims["ppid"] = platform.ppid
    if level is not None:
        claims |= {
            "tcb_status": level.status.value,
            "tcb_date": level.date,
            "advisories": list(level.advisories),
        }
    if quote.is_tdx:
        _replay(claims, collateral, check)
    return VerifiedEvidence(
        Format.TDX if quote.is_tdx else Format.SGX,
        quote.body.raw(520 if quote.is_tdx else 320, 64),
        {"quote_version": quote.version, "trailing_bytes": quote.trailing, **claims},
        Rooted.HARDWARE, False, revocation, not_after, check,
    )  # fmt: skip


def _require_module(body: Fields) -> None:
    """Refuse a TDX module that is not Intel's or is debugged, and attributes without a meaning."""
    require_equal(
        "TDX quote: signer of the TDX module", body.raw(64, 48), bytes(48),
        remedy="it is not Intel's own",
    )  # fmt: skip
    require_equal(
        "TDX quote: attributes of the TDX module", body.raw(112, 8), bytes(8),
        remedy="it does not run as Intel's own does",
    )  # fmt: skip
    if body.number(120, 8) & ~_KNOWN_TD_ATTRIBUTES:
        raise AttestationError("TDX quote: TD attributes have bits that this version does not know")


def _require_quoting_enclave(quote: Quote) -> None:
    """Refuse a quoting enclave that is not Intel's, or that is debugged.

    Its identity, which Intel signs, says more (`evaluate`); this holds also where it is not given.
    """
    report, what = quote.qe_report, "quoting enclave"
    signer, product = _QE_SIGNERS[quote.is_tdx]
    require_equal(f"{what}: signer", report.raw(128, 32), signer, remedy="it is not Intel's")
    require_equal(f"{what}: product", report.number(256, 2), product, remedy="it is not Intel's")
    flags = report.number(48, 8)
    if flags & (_INIT | _DEBUG) != _INIT:
        raise refused(
            f"{what}: attributes", expected="initialised, not debugged", found=f"{flags:#x}",
            remedy="who debugs it can have it sign anything",
        )  # fmt: skip


def _point(key: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
    except ValueError:
        raise AttestationError("quote: the attestation key is no point of its curve") from None


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, wrong: str) -> None:
    verify_ecdsa(key, signature, data, digest=hashes.SHA256(), wrong=wrong)


def _revocation(
    chain: Sequence[x509.Certificate],
    collateral: Collateral,
    now: datetime,
    not_after: datetime,
    check: Check,
) -> tuple[Revocation, datetime]:
    """What Intel's lists say: one of the root's, one of the issuer of PCK certificates."""
    issued = [one for one in chain if one.subject != one.issuer]
    issuers = (*chain[1:], *roots(ROOTS))
    # Every list that is there is judged, also where another one is missing.
    with check.step("revocation"):
        ends = [_require_not_revoked(one, issuers, collateral, now) for one in issued]
    for one, end in zip(issued, ends, strict=True):
        if end is None:
            check.leave("revocation", f"no list of {one.issuer.rfc4514_string()} is given")
            return Revocation.UNKNOWN, not_after
    return Revocation.GOOD, min(not_after, *(end for end in ends if end is not None))


def _require_not_revoked(
    certificate: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    collateral: Collateral,
    now: datetime,
) -> datetime | None:
    """Refuse a certificate that a list of its issuer names; when the lists end, None without any.

    Raises   AttestationError
    """
    issuer = next(other for other in issuers if other.subject == certificate.issuer)
    lists = [one for one in collateral.revocation_lists if one.crl.issuer == issuer.subject]
    for one in lists:
        one.verify(issuer, now=now)
        if one.lists(certificate):
            raise AttestationError(f"certificate {named(certificate)}: Intel has revoked it")
    return min((one.not_after for one in lists), default=None)


def _tcb(
    quote: Quote,
    platform: PlatformTcb,
    collateral: Collateral,
    now: datetime,
    not_after: datetime,
    check: Check,
) -> tuple[TcbLevel | None, datetime]:
    """The platform's TCB level, if Intel's documents are given."""
    with check.step("TCB") as step:
        read: dict[str, IntelDocument] = {}
        # A document that is there is judged, also where the other one is missing.
        for kind, what in _DOCUMENTS.items():
            documents = dict.fromkeys(collateral.documents.get(kind, ()))
            if len(documents) > 1:
                # A folder may be for several platforms.
                fitting = [one for one in documents if names_platform(one.data, quote, platform)]
                if len(fitting) != 1:
                    raise AttestationError(
                        f"{what}: several are given, and {len(fitting)} of them are for this "
                        "platform; give one for it"
                    )
                documents = dict.fromkeys(fitting)
            for document in documents:
                with step.step(what) as part:
                    ends = _verify_document(document, what, collateral, now, part)
                    read[kind] = read_document(document.data, what, now=now)
                    not_after = min(not_after, ends, read[kind].not_after)
        level = evaluate(quote, platform, read.get("tcb_info"), read.get("qe_identity"))
        if level is not None:
            step.detail = f"{level.status}, {level.date}"
            return level, not_after
    missing = [what for kind, what in _DOCUMENTS.items() if kind not in read]
    check.leave("TCB", f"no {' and no '.join(missing)} is given")
    return None, not_after


def _verify_document(
    document: SignedDocument, what: str, collateral: Collateral, now: datetime, check: Check
) -> datetime:
    """Check the signature of a document, by a certificate of Intel's for that purpose."""
    signers = [one for one in collateral.certificates if named(one) == "Intel SGX TCB Signing"]
    if not signers:
        raise AttestationError(f"{what}: the certificate of its signer is missing in --collateral")
    signer, pinned = signers[0], roots(ROOTS)
    ends = verify_chain([signer], pinned, now=now, check=check)
    _require_not_revoked(signer, pinned, collateral, now)
    key = require_p(signer.public_key(), ec.SECP256R1, named(signer))
    _verify(key, document.signature, document.data, f"{what}: signature is wrong; it was changed")
    return ends


def _sgx_claims(quote: Quote) -> dict[str, object]:
    body = quote.body
    flags = body.number(48, 8)
    return {
        "mrenclave": body.raw(64, 32),
        "mrsigner": body.raw(128, 32),
        "isvprodid": body.number(256, 2),
        "isvsvn": body.number(258, 2),
        "cpusvn": body.raw(0, 16),
        "miscselect": body.number(16, 4),
        "attributes": body.raw(48, 16),
        "config_id": body.raw(192, 64),
        "config_svn": body.number(260, 2),
        "isvfamilyid": body.raw(304, 16),
        "isvextprodid": body.raw(32, 16),
        "initialised": bool(flags & 1),
        "debug": bool(flags >> 1 & 1),
        "mode64": bool(flags >> 2 & 1),
        "provision_key": bool(flags >> 4 & 1),
        "key_separation": bool(flags >> 7 & 1),
    }


def _tdx_claims(quote: Quote) -> dict[str, object]:
    body = quote.body
    flags = body.number(120, 8)
    claims: dict[str, object] = {
        "mrtd": body.raw(136, 48),
        **{name: body.raw(328 + 48 * i, 48) for i, name in enumerate(_TDX_REGISTERS)},
        "mrconfigid": body.raw(184, 48),
        "mrowner": body.raw(232, 48),
        "mrownerconfig": body.raw(280, 48),
        "mrseam": body.raw(16, 48),
        "mrsignerseam": body.raw(64, 48),
        "seam_attributes": body.raw(112, 8),
        "td_attributes": body.raw(120, 8),
        "xfam": body.raw(128, 8),
        "tee_tcb_svn": body.raw(0, 16),
        # The whole group "TD under debug": only its first bit has a meaning yet.
        "debug": bool(flags & _TD_DEBUG_GROUP),
        **{name: bool(flags >> bit & 1) for name, bit in _TD_ATTRIBUTES.items()},
    }
    claims["septve_enabled"] = not claims.pop("septve_disabled")
    if len(body.data) == TDX15_BODY:
        claims["tee_tcb_svn_2"] = body.raw(584, 16)
        claims["mrservicetd"] = body.raw(600, 48)
    return claims


def _replay(claims: dict[str, object], collateral: Collateral, check: Check) -> None:
    """Check event logs against the registers that they claim to explain."""
    for log in collateral.event_logs:
        with check.step("event log") as step:
            registers, count = replay(log)
            for name, value in zip(_TDX_REGISTERS, registers, strict=True):
                require_equal(
                    f"event log: {name}", value, claims[name],
                    remedy="the log is of another machine, or was changed",
                )  # fmt: skip
            claims["event_log_events"] = count
            step.detail = f"{count} events reproduce all four registers"
