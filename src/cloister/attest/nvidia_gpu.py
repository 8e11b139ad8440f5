"""NVIDIA GPUs: an SPDM measurement report, signed by the GPU's own key.

Such a report proves that a genuine GPU with this firmware answered a nonce. It binds no channel and
no host, so anybody may pass one on: it never takes blinding away.

Source   SPDM 1.1 (DMTF DSP0274), section 10.11; NVIDIA attestation SDK (layout of the opaque data)
"""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from xml.etree import ElementTree

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.certificates import load_certificates, named, require_p, roots, verify_chain
from cloister.attest.check_tree import Check, refused, require_equal
from cloister.attest.collateral import Collateral
from cloister.attest.fields import Fields
from cloister.attest.signatures import verify_ecdsa
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.base.reading import parsing
from cloister.errors import AttestationError

WHAT = "GPU report"
REQUEST_BYTES = 37
REQUEST = bytes.fromhex("11e001ff")
RESPONSE = bytes.fromhex("1160")
SIGNATURE_BYTES = 96
DIGEST_BYTES = 48
CHAIN_CERTIFICATES = 5
_FWID = 20
_VERSIONS = {3: "driver_version", 6: "vbios_version"}
_DICE = ("2.23.133.5.4.1", "2.23.133.5.4.1.1")
_DMTF_DIGEST = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_GPUS = 128
"""Of one machine; each costs the verification of a chain."""


@dataclass(frozen=True)
class GpuEvidence:
    """A report, the chain that came with it, and the nonce that its owner says it asked with."""

    report: bytes
    certificates: tuple[x509.Certificate, ...] = ()
    nonce: bytes | None = None


def find(data: bytes) -> list[GpuEvidence]:
    """The reports in a file: bytes, hexadecimal, or the JSON list of NVIDIA's tools."""
    if data.startswith(REQUEST):
        return [GpuEvidence(data)]
    text = data.strip()
    if text[:8].lower() == REQUEST.hex().encode():
        with parsing(f"{WHAT}: is not hexadecimal", kind=AttestationError):
            return [GpuEvidence(bytes.fromhex(text.decode()))]
    if text.startswith(b"[") and b'"evidence"' in text:
        return list(_listed(text))
    return []


def _listed(text: bytes) -> Iterator[GpuEvidence]:
    with parsing("list of GPU reports: is damaged", kind=AttestationError):
        listed = json.loads(text)
        if len(listed) > MAX_GPUS:
            raise AttestationError(
                f"list of GPU reports: has {len(listed)}, of {MAX_GPUS}; give those of one machine"
            )
        for one in listed:
            chain = load_certificates(b64decode(one["certificate"], validate=True), "GPU's chain")
            yield GpuEvidence(
                b64decode(one["evidence"], validate=True), tuple(chain), bytes.fromhex(one["nonce"])
            )


def verify(
    found: Sequence[GpuEvidence], collateral: Collateral, *, now: datetime, check: Check
) -> VerifiedEvidence:
    """Verify the reports of one machine's GPUs; all have to answer one nonce.

    Raises   AttestationError
    """
    nonces = {Fields(one.report, WHAT).raw(4, 32) for one in found}
    if len(nonces) > 1:
        raise AttestationError(f"{WHAT}: the {len(found)} reports answer different nonces")
    gpus, ends = [], []
    for number, one in enumerate(found):
        with check.step(f"GPU {number}" if len(found) > 1 else "report") as step:
            claims, not_after = _verify_one(one, collateral, now=now, check=step)
        gpus.append(claims)
        ends.append(not_after)
    check.leave("revocation", "NVIDIA answers by OCSP only, and no answer is given")
    serials, drivers = (
        list(dict.fromkeys(str(one[name]) for one in gpus)) for name in ("serial", "driver_version")
    )
    if len(serials) < len(gpus):
        raise AttestationError(f"{WHAT}: two of the {len(gpus)} reports are of one GPU")
    claims = {
        **gpus[0], "gpus": len(gpus), "serials": serials, "driver_versions": drivers,
        "relayable": True,
    }  # fmt: skip
    return VerifiedEvidence(
        Format.NVIDIA_GPU, nonces.pop(), claims, Rooted.HARDWARE, True, Revocation.UNKNOWN,
        min(ends), check,
    )  # fmt: skip


def _verify_one(
    one: GpuEvidence, collateral: Collateral, *, now: datetime, check: Check
) -> tuple[dict[str, object], datetime]:
    check.expect("form", "certificate chain", "signature", "firmware identity", "nonce")
    with check.step("form"):
        report = _Report(one.report)
    chain = list(one.certificates or collateral.certificates)
    with check.step("certificate chain") as step:
        require_equal(
            f"{WHAT}: certificates", len(chain), CHAIN_CERTIFICATES,
            remedy="give the whole chain, from the report's signer to NVIDIA's root",
        )  # fmt: skip
        not_after = verify_chain(chain, roots("nvidia"), now=now, check=step)
    leaf = chain[0]
    with check.step("signature"):
        verify_ecdsa(
            require_p(leaf.public_key(), ec.SECP384R1, f"certificate {named(leaf)}"),
            report.signature, report.signed, digest=hashes.SHA384(),
            wrong=f"{WHAT}: signature is wrong; it was changed, or is of another GPU",
        )  # fmt: skip
    identity = report.opaque.get(_FWID, b"")
    if not identity:
        check.leave("firmware identity", "the report states none, as those of older drivers")
    else:
        with check.step("firmware identity"):
            if len(identity) != DIGEST_BYTES or identity not in _dice(leaf):
                raise AttestationError(
                    f"{WHAT}: its firmware identity is not the one in its signer's certificate"
                )
    if one.nonce is None:
        check.leave("nonce", "compared where the report is appraised")
    else:
        with check.step("nonce"):
            require_equal(f"{WHAT}: nonce", report.nonce, one.nonce, remedy="it is an old report")
    for number, manifest in enumerate(collateral.manifests):
        with check.step(f"reference manifest {number}") as step:
            matched = _require_measured(report.measurements, manifest)
            step.detail = f"{matched} active measurements match"
    manifests = sorted({sha256(one).hexdigest() for one in collateral.manifests})
    serials = leaf.subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)
    claims: dict[str, object] = {
        "chip": named(leaf),
        "serial": str(serials[0].value) if serials else "",
        "nonce": report.nonce,
        "firmware_identity": identity,
        "measurements": len(report.measurements),
        "trailing_bytes": report.trailing,
        "manifest_count": len(manifests),
        "manifests": manifests,
    }
    for kind, name in _VERSIONS.items():
        claims[name] = _text(report.opaque.get(kind, b""))
    return claims, not_after


def _text(value: bytes) -> str:
    value = value.rstrip(b"\0")
    return value.decode() if value.isascii() and value.decode().isprintable() else value.hex()


class _Report:
    """A request and its response, taken apart.

    Raises   AttestationError
    """

    def __init__(self, data: bytes) -> None:
        fields = Fields(data, WHAT)
        require_equal(f"{WHAT}: request", fields.raw(0, 4), REQUEST, remedy="it is no GPU report")
        at = REQUEST_BYTES
        require_equal(f"{WHAT}: response", fields.raw(at, 2), RESPONSE, remedy="it is no answer")
        count, size = fields.number(at + 4, 1), fields.number(at + 5, 3)
        record = Fields(fields.raw(at + 8, size), f"{WHAT}: measurements")
        self.measurements = dict(_blocks(record, count))
        at += 8 + size
        # The nonce that the request had; the response repeats none, and has one of its own.
        self.nonce = fields.raw(4, 32)
        self.opaque = _opaque(fields.raw(at + 34, fields.number(at + 32, 2)))
        end = at + 34 + fields.number(at + 32, 2)
        self.signed = fields.raw(0, end)
        self.signature = fields.raw(end, SIGNATURE_BYTES)
        self.trailing = len(data) - end - SIGNATURE_BYTES
        if self.trailing > 1 or any(data[len(data) - self.trailing :] if self.trailing else b""):
            raise AttestationError(f"{WHAT}: {self.trailing} bytes behind it; nobody signed them")


def _blocks(record: Fields, count: int) -> Iterator[tuple[int, bytes]]:
    at, seen = 0, set()
    for _ in range(count):
        index, specification, size = (
            record.number(at, 1), record.number(at + 1, 1), record.number(at + 2, 2),
        )  # fmt: skip
        inner = Fields(record.raw(at + 4, size), f"{WHAT}: measurement {index}")
        if specification != 1 or inner.number(1, 2) != DIGEST_BYTES or size != 3 + DIGEST_BYTES:
            raise refused(
                f"{WHAT}: measurement {index}", expected="a SHA-384 digest as DMTF defines it",
                found=(specification, size), remedy="this version does not know it",
            )  # fmt: skip
        if index in seen:
            raise AttestationError(f"{WHAT}: measurement {index} is there twice")
        seen.add(index)
        yield index, inner.raw(3, DIGEST_BYTES)
        at += 4 + size
    if at != len(record.data):
        raise AttestationError(f"{WHAT}: {len(record.data) - at} bytes behind its measurements")


def _opaque(data: bytes) -> dict[int, bytes]:
    fields, found, at = Fields(data, f"{WHAT}: opaque data"), {}, 0
    while at < len(data):
        kind, size = fields.number(at, 2), fields.number(at + 2, 2)
        found[kind] = fields.raw(at + 4, size)
        at += 4 + size
    return found


def _dice(leaf: x509.Certificate) -> bytes:
    """The DICE extension of the signer's certificate."""
    with parsing(f"certificate {named(leaf)}: is damaged", kind=AttestationError):
        for extension in leaf.extensions:
            value = extension.value
            if extension.oid.dotted_string in _DICE and isinstance(
                value, x509.UnrecognizedExtension
            ):
                return value.value
    raise AttestationError(f"certificate {named(leaf)}: states no firmware identity")


def _require_measured(measurements: Mapping[int, bytes], manifest: bytes) -> int:
    """Compare a report with a reference manifest; how many active measurements match.

    Raises   AttestationError naming those that differ
    """
    differ, matched = [], 0
    for index, alternatives in _references(manifest):
        # The manifest counts from 0, the report's blocks from 1.
        if measurements.get(index + 1) in alternatives:
            matched += 1
        else:
            differ.append(index)
    if differ:
        raise AttestationError(
            f"{WHAT}: measurements {', '.join(map(str, differ))} are not those of the reference "
            "manifest; the GPU runs other firmware"
        )
    if not matched:
        raise AttestationError("reference manifest: has no active measurement")
    return matched


class _WithoutEntities(ElementTree.TreeBuilder):
    """Refuses what could define entities, in every encoding that the parser reads."""

    def doctype(self, *_names: str | None) -> None:
        raise AttestationError("reference manifest: defines entities")


def _references(manifest: bytes) -> Iterator[tuple[int, set[bytes]]]:
    """Active measurements of a manifest, which is not signed here: its digest has to be pinned."""
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise AttestationError("reference manifest: is too large")
    with parsing("reference manifest: is damaged", kind=AttestationError):
        parser = ElementTree.XMLParser(target=_WithoutEntities())  # noqa: S314
        tree = ElementTree.fromstring(manifest, parser)  # noqa: S314
        for element in tree.iter():
            attributes = {name.rpartition("}")[2]: text for name, text in element.items()}
            if element.tag.rpartition("}")[2] != "Resource" or attributes.get("active") != "True":
                continue
            count = int(attributes["alternatives"])
            digests = {bytes.fromhex(attributes[f"Hash{i}"]) for i in range(count)}
            yield int(attributes["index"]), digests
