"""Hostile evidence, collateral and policies.

Half of the evidence is verified as it is: then what is accepted has to claim what genuine evidence
claims. For the other half every signature holds, as if the vendor had signed the damage: so the
code behind the signatures is reached, too.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import cbor2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attest import forge
from attest.cases import GENUINE, LENIENT, VECTORS
from attest.cases import Case as Genuine
from cloister.attest import certificates, intel, nitro, nvidia_gpu, sev_snp, simulated
from cloister.attest.appraisal import appraise
from cloister.attest.check_tree import Check
from cloister.attest.collateral import Collateral
from cloister.attest.intel_quote import SGX_BODY, parse
from cloister.attest.policy import Policy, template
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.tpm import TpmEvidence
from cloister.attest.tpm_structures import TpmKey
from cloister.attest.verify import verify
from fuzz.bounds import FindingError
from fuzz.case import Case, Maker
from fuzz.mutate import mutated_bytes, mutated_json
from fuzz.structures import (
    mutated_cbor,
    mutated_der,
    mutated_pem,
    parts_changed,
    pick,
    spliced,
    with_odd_length,
)

UNSIGNED = {
    "trailing_bytes", "event_log_events", "tcb_status", "tcb_date", "advisories", "manifests",
    "manifest_count", "gpus", "serials", "driver_versions", "runtime",
}  # fmt: skip
"""Claims of what was given beside the signed part, and of lists of signed parts."""
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
INTEL = [case for case in GENUINE if case.kind in ("tdx", "sgx") and case.form == "bare"]
NITRO = [case for case in GENUINE if case.kind == "nitro"]
DOCUMENTS = [case for case in GENUINE if case.evidence.endswith(".json")]
GPU = [case for case in GENUINE if case.evidence.startswith("gpu/hopper")]
TPM = [Genuine(path.stem, f"tpm/{path.name}", "tpm") for path in sorted(VECTORS.glob("tpm/*.bin"))]
FILES = sorted(path for path in VECTORS.rglob("*") if path.is_file() and path.suffix != ".md")


@contextmanager
def evidence(folder: Path) -> Iterator[Maker]:
    """Cases; files are written into a folder."""
    genuine = {_claimed(verify(one.data, one.given(), now=one.at)) for one in GENUINE}
    genuine |= {_claimed(verify(one.data, now=one.at)) for one in TPM}
    (gpus,) = [one for one in DOCUMENTS if one.kind == "nvidia-gpu"]
    genuine |= {
        _claimed(verify(json.dumps([report]).encode(), now=gpus.at))
        for report in json.loads(gpus.data)
    }
    kinds = (
        _bytes, _spliced, _lengths, _quote, _quote, _nitro, _nitro, _json, _gpu, _forged, _table,
        _tpm, _signed_by_the_player, _bulk, _collateral, _collateral, _event_log, _policy,
    )  # fmt: skip

    def case(rng: np.random.Generator) -> Case:
        kind = pick(rng, kinds)
        holds = kind not in UNSIGNED_KINDS and bool(rng.integers(0, 2))
        data, run = kind(rng, holds, folder)

        def judged() -> None:
            with signatures_hold() if holds else nullcontext():
                found = run()
            if not holds and found is not None and _claimed(found) not in genuine:
                raise FindingError("accepted", f"{kind.__name__}: claims that nobody signed")

        return Case(kind.__name__.strip("_") + (", signed" if holds else ""), data, judged)

    yield case


@contextmanager
def signatures_hold() -> Iterator[None]:
    """Every signature of evidence and certificates is accepted."""

    def accept(*_: object, **__: object) -> None:
        pass

    with ExitStack() as stack:
        for module in (intel, nitro, nvidia_gpu, sev_snp):
            stack.enter_context(patch.object(module, "verify_ecdsa", accept))
        stack.enter_context(patch.object(certificates, "_verify_issued", accept))
        stack.enter_context(patch.object(TpmKey, "verify", accept))
        yield


Made = tuple[bytes, Callable[[], object]]


def _judged(data: bytes, given: Collateral, one: Genuine) -> Made:
    """Evidence that is verified and appraised; what is written of it is JSON."""

    def run() -> object:
        found = verify(data, given, now=one.at, check=Check("fuzzed"))
        json.dumps(found.to_json())
        if found.format in LENIENT.sections:
            json.dumps(appraise(found, LENIENT, found.report_data).to_json())
        return found

    return data, run


def _claimed(found) -> tuple[object, ...]:
    """What was signed, in a form that can be compared."""
    claims = {name: value for name, value in found.claims.items() if name not in UNSIGNED}
    return found.format, found.report_data, json.dumps(claims, default=bytes.hex, sort_keys=True)


def _other_given(rng, one: Genuine) -> Collateral:
    return pick(rng, GENUINE).given() if rng.integers(0, 8) == 0 else one.given()


# ---- evidence


def _bytes(rng, _holds, _folder) -> Made:
    one = pick(rng, GENUINE)
    return _judged(mutated_bytes(one.data, rng), _other_given(rng, one), one)


def _spliced(rng, _holds, _folder) -> Made:
    one, other = pick(rng, GENUINE), pick(rng, GENUINE)
    return _judged(spliced(one.data, other.data, rng), _other_given(rng, one), one)


def _lengths(rng, _holds, _folder) -> Made:
    one = pick(rng, [case for case in GENUINE if case not in NITRO and case not in DOCUMENTS])
    data = one.data
    hexadecimal = one in GPU
    if hexadecimal:
        data = bytes.fromhex(data.decode())
    for _ in range(int(rng.integers(1, 3))):
        data = with_odd_length(data, _places(one, data), rng)
    return _judged(data.hex().encode() if hexadecimal else data, one.given(), one)


def _places(one: Genuine, data: bytes) -> list[tuple[int, int]]:
    """Where lengths, counts, versions and kinds stand (offset, bytes)."""
    if one.kind == "sev-snp":
        at = one.signed[0]
        return [(at + offset, 4) for offset in (0, 4, 0x34, 0x48, 0x30)] + [
            (at + offset, 8) for offset in (8, 0x38, 0x40, 0x180, 0x1E0, 0x1F0, 0x1F8, 0x200)
        ]
    if one.kind == "nvidia-gpu":
        at = nvidia_gpu.REQUEST_BYTES
        size = int.from_bytes(data[at + 5 : at + 8], "little")
        blocks = [(at + 8 + 55 * i + 2, 2) for i in range(size // 55)]
        return [(at + 4, 1), (at + 5, 3), *blocks, (at + 8 + size + 32, 2), (at + 10 + size, 2)]
    end = one.signed[1]
    after = [(end, 4), (end + 4 + 128, 2), (end + 4 + 130, 4), (end + 4 + 134 + 448, 2)]
    auth = int.from_bytes(data[end + 586 : end + 588], "little")
    chain = end + 4 + 134 + 450 + auth
    return [(0, 2), (2, 2), (4, 4), (48, 2), (50, 4), *after, (chain, 2), (chain + 2, 4)]


def _quote(rng, holds, _folder) -> Made:
    one, other = pick(rng, INTEL), pick(rng, INTEL)
    parts, others = _taken_apart(one.data), _taken_apart(other.data)
    if rng.integers(0, 3) == 0:
        parts[-1] = mutated_pem(parts[-1].rstrip(b"\0"), rng)
    else:
        parts = parts_changed(parts, others, rng)
    if holds and rng.integers(0, 4) and len(parts[4]) == SGX_BODY:
        parts[4] = parts[4][:320] + sha256(parts[3] + parts[6]).digest() + bytes(32)
    return _judged(_put_together(one.data, parts), _other_given(rng, one), one)


def _taken_apart(data: bytes) -> list[bytes]:
    """Header, body, signature, key, report and signature of the enclave, data, and chain."""
    quote = parse(data)
    return [quote.signed[:48], quote.signed[48:], quote.signature, quote.key, quote.qe_report.data,
            quote.qe_signature, quote.auth_data, quote.pck_chain]  # fmt: skip


def _put_together(like: bytes, parts: list[bytes]) -> bytes:
    header, body, signature, key, report, qe_signature, auth, chain = parts
    inner = report + qe_signature + len(auth).to_bytes(2, "little") + auth
    inner += (5).to_bytes(2, "little") + len(chain).to_bytes(4, "little") + chain
    if like[:1] != b"\3":
        inner = (6).to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
    block = signature + key + inner
    return header + body + len(block).to_bytes(4, "little") + block


def _nitro(rng, holds, _folder) -> Made:
    one = pick(rng, NITRO)
    data = one.data[one.signed[0] :][: 1 << 14]
    if rng.integers(0, 3) == 0:
        return _judged(mutated_cbor(data, rng), Collateral(), one)
    parts = cbor2.loads(data)
    parts = parts.value if isinstance(parts, cbor2.CBORTag) else parts
    place = 0 if rng.integers(0, 10) == 0 else 2
    document = cbor2.loads(parts[place])
    if place and rng.integers(0, 3) == 0:
        i = int(rng.integers(0, len(document["cabundle"]) + 1))
        if i == len(document["cabundle"]):
            document["certificate"] = mutated_der(document["certificate"], rng)
        else:
            document["cabundle"][i] = mutated_der(document["cabundle"][i], rng)
        parts[place] = cbor2.dumps(document)
    else:
        parts[place] = mutated_cbor(parts[place], rng)
    return _judged(cbor2.dumps(parts), Collateral(), one)


def _json(rng, _holds, _folder) -> Made:
    one = pick(rng, DOCUMENTS)
    return _judged(mutated_json(one.data, rng), one.given(), one)


def _gpu(rng, _holds, _folder) -> Made:
    """One of eight reports with parts changed, its chain changed, or twice."""
    (one,) = [case for case in DOCUMENTS if case.kind == "nvidia-gpu"]
    listed = json.loads(one.data)
    i = int(rng.integers(0, len(listed)))
    match int(rng.integers(0, 4)):
        case 0:
            listed[i] = listed[0]
        case 1:
            listed = [listed[i]] * int(rng.integers(1, 40))
        case 2:
            chain = b64decode(listed[i]["certificate"])
            listed[i]["certificate"] = b64encode(mutated_pem(chain, rng)).decode()
        case _:
            report = b64decode(listed[i]["evidence"])
            places = _places(one, report)
            report = with_odd_length(report, places, rng) if i % 2 else mutated_bytes(report, rng)
            listed[i]["evidence"] = b64encode(report).decode()
    return _judged(json.dumps(listed).encode(), Collateral(), one)


FORGED = [forge.Amd(product) for product in ("Milan", "Genoa", "Turin")]


def _forged(rng, _holds, _folder) -> Made:
    """A report that its chip signed: any field has any value. Its root counts as AMD's."""
    vendor = pick(rng, FORGED)
    offset = int(pick(rng, range(0, sev_snp.SIGNED_BYTES, 4)))
    value = pick(rng, (b"\0" * 8, b"\xff" * 8, rng.bytes(8), b"\x01\0\0\0\0\0\0\0"))
    report = vendor.report(version=int(rng.integers(1, 7)), changes=[(offset, value)])
    if rng.integers(0, 4) == 0:
        text, _ = forge.azure_runtime(keys=[1], **{"user-data": "00"})
        report = forge.azure(report, mutated_json(text, rng))
    certificate = forge.certificate(
        vendor.leaf, forge.ec_key("vcek"), f"SEV-{vendor.product}", forge.rsa_key("ask"),
        extensions=_odd_extensions(rng, vendor),
    ) if rng.integers(0, 3) == 0 else vendor.vcek  # fmt: skip
    given = replace(vendor.collateral, certificates=(certificate, vendor.ask))

    def run() -> None:
        with patch.object(sev_snp, "roots", lambda _: (vendor.root,)):
            found = verify(report, given, now=forge.NOW)
            json.dumps(appraise(found, LENIENT, None).to_json())

    return report, run


def _odd_extensions(rng, vendor) -> list[tuple[str, bytes]]:
    extensions = [(forge.AMD + f"3.{i}", forge.integer(9)) for i in (1, 2, 3, 8)]
    extensions.append((forge.AMD + "4", vendor.chip))
    i = int(rng.integers(0, len(extensions)))
    odd = pick(rng, (b"", b"\2\1", b"\2\2\0\0", b"\2\x84\xff\xff\xff\xff\0", b"\xff" * 64))
    extensions[i] = (extensions[i][0], odd)
    return extensions


GUIDS = [guid.bytes_le for guid in sev_snp._CERTIFICATE_TABLE]


def _table(rng, _holds, _folder) -> Made:
    """A report with the certificates that its host put behind it, whose table is damaged."""
    one = GENUINE[1]
    ders = [(VECTORS / "snp/coco_test-vcek.der").read_bytes()]
    ders += [certificates.to_der(c) for c in one.given().certificates[:2]]
    table = forge.table(*zip(GUIDS, [pick(rng, ders) for _ in GUIDS], strict=True))
    if rng.integers(0, 2):
        rows = [(24 * i + at, 4) for i in range(len(GUIDS)) for at in (16, 20)]
        table = with_odd_length(table, rows, rng)
    else:
        table = mutated_bytes(table, rng)
    return _judged(one.data + table, pick(rng, (Collateral(), one.given())), one)


def _tpm(rng, _holds, _folder) -> Made:
    """A field of a quote damaged, of another quote, or with an odd length inside."""
    one, other = (TpmEvidence.decode(pick(rng, TPM).data) for _ in range(2))
    if rng.integers(0, 4) == 0:
        return _judged(mutated_cbor(one.encode(), rng), Collateral(), TPM[0])
    name = pick(rng, ("statement", "signature", "key", "parent", "report_data", "certificate"))
    value = getattr(one, name) or b"\x30\x00"
    at = int(rng.integers(0, len(value)))
    odd = pick(rng, (b"\0\0", b"\0\1", b"\0\xff", b"\x7f\xff", b"\xff\xff"))
    changed = pick(rng, (
        value[:at] + odd + value[at + 2 :], mutated_bytes(value, rng), getattr(other, name),
    ))  # fmt: skip
    registers = one.registers
    if rng.integers(0, 6) == 0:
        index = int(pick(rng, (0, 1, 16, 23, 24, 2**70)))
        registers = {**registers, index: rng.bytes(int(pick(rng, (0, 31, 32))))}
    made = replace(one, **{name: changed}, registers=registers)
    return _judged(made.encode(), Collateral(), TPM[0])


def _signed_by_the_player(rng, _holds, _folder) -> Made:
    """Simulated evidence, whose body anybody can sign."""
    made = SimulatedMachine(rng.bytes(32).hex()).evidence(rng.bytes(64), key=KEY)
    data = mutated_json(made, rng)
    found = json.loads(data) if len(data) < 50_000 else None
    if isinstance(found, dict) and isinstance(found.get("body"), dict) and rng.integers(0, 2):
        signed = simulated._signed(found["body"])
        data = json.dumps({**found, "signature": KEY.sign(signed).hex()}).encode()
    policy = Policy.of({"insecure-simulated": {"insecure_allow_any_code": True}})

    def run() -> None:
        found = verify(data, now=forge.NOW)
        json.dumps(appraise(found, policy, found.report_data).to_json())

    return data, run


def _bulk(rng, _holds, folder) -> Made:
    """As much as a file may hold of what costs its reader most."""
    (one,) = [case for case in DOCUMENTS if case.kind == "nvidia-gpu"]
    reports = json.loads(one.data)
    log = json.loads(next(c for c in DOCUMENTS if c.kind == "tdx").data)
    events = json.loads(log["event_log"])
    count = int(rng.integers(1, 4000))
    bulky = (
        lambda: json.dumps(reports * (count // 96)).encode(),
        lambda: json.dumps({**log, "event_log": json.dumps(events * (count // 4))}).encode(),
        lambda: _cose(cbor2.CBORTag(35, "(?i)" + "[\0-\U0010ffff]" * count)),
        lambda: _cose({str(i): [[]] * 9 for i in range(count)}),
        lambda: GENUINE[1].data + forge.table((GUIDS[0], bytes(count))) * count,
        lambda: b"11e001ff" * (count << 6),
        lambda: b"-----BEGIN REPORT-----" * (count << 4),
        lambda: json.dumps({"kind": simulated.KIND, "body": {"measurement": "0" * count * 999}},
                           ).encode(),
        lambda: b"{" + b'"quote":{' * count,
    )  # fmt: skip
    data = pick(rng, bulky)()[: 4 << 20]
    return _judged(data, Collateral(), one)


def _cose(document: object) -> bytes:
    return cbor2.dumps([bytes.fromhex("a1013822"), {}, cbor2.dumps(document), bytes(96)])


# ---- what is given beside it


def _collateral(rng, holds, folder) -> Made:
    """A file of any kind, damaged as its kind allows, and evidence that is judged with it."""
    source = pick(rng, FILES)
    data = _damaged_file(source.read_bytes(), rng)
    path = folder / f"given{source.suffix}"
    path.write_bytes(data)
    users = [c for c in GENUINE if source.name in {Path(n).name for n in c.collateral}] or GENUINE
    one = pick(rng, users)

    def run() -> object:
        given = Collateral.load([path])
        rest = one.given()
        own = (given.certificates, given.revocation_lists, given.manifests, given.event_logs)
        beside = (rest.certificates, rest.revocation_lists, rest.manifests, rest.event_logs)
        mixed = Collateral(
            own[0] or beside[0], own[1] or beside[1], {**rest.documents, **given.documents},
            own[2] or beside[2], own[3] or beside[3],
        )  # fmt: skip
        found = verify(one.data, mixed, now=one.at)
        json.dumps(appraise(found, LENIENT, None).to_json())
        return found

    return data, run


def _damaged_file(data: bytes, rng) -> bytes:
    if rng.integers(0, 4) == 0:
        return mutated_bytes(data, rng)
    if b"-----BEGIN" in data[:64]:
        return mutated_pem(data, rng)
    if data[:1] == b"\x30":
        return mutated_der(data, rng)
    if data[:1] == b"<":
        return _mutated_xml(data, rng)
    if data[:1] not in (b"{", b"["):
        return mutated_bytes(data, rng)
    if b"tcb_info_issuer_chain" not in data:
        return mutated_json(data, rng)
    found = json.loads(data)
    key = pick(rng, list(found))
    text = found[key].encode()
    if text.startswith(b"{"):
        found[key] = mutated_json(text, rng).decode()
    elif b"-----BEGIN" in text:
        found[key] = mutated_pem(text, rng).decode("latin-1")
    elif key.endswith("crl"):
        found[key] = mutated_der(bytes.fromhex(text.decode()), rng).hex()
    else:
        found[key] = mutated_bytes(text, rng).decode("latin-1")
    return json.dumps(found).encode()


_XML = (
    (b'alternatives="1"', b'alternatives="999999999"'), (b'alternatives="1"', b'alternatives="-1"'),
    (b'index="', b'index="9'), (b'active="True"', b'active="true"'), (b"Hash0", b"Hash1"),
    (b"<Payload>", b"<a>" * 20000), (b"<", b"<!DOCTYPE a [<!ENTITY b 'c'>]><"), (b'="', b'="&#0;'),
    (b'encoding="UTF-8"', b'encoding="utf-16"'), (b'encoding="utf-8"', b'encoding="cp037"'),
    (b'index="', b'index="' + b"1" * 5000),
)  # fmt: skip


def _mutated_xml(data: bytes, rng) -> bytes:
    old, new = pick(rng, _XML)
    return data.replace(old, new, 1 if rng.integers(0, 2) else -1)


def _event_log(rng, holds, folder) -> Made:
    (one,) = [case for case in GENUINE if "tdx/ccel.dat" in case.collateral]
    log = (VECTORS / "tdx/ccel.dat").read_bytes()
    places = list(_event_places(log))
    for _ in range(int(rng.integers(1, 3))):
        log = with_odd_length(log, places, rng)
    return _judged(one.data, Collateral(event_logs=(log,)), one)


def _event_places(log: bytes) -> Iterator[tuple[int, int]]:
    """Sizes and counts of the log's head and of its first events."""
    size = int.from_bytes(log[28:32], "little")
    yield from ((28, 4), (56, 4), (60, 2), (62, 2))
    at = 32 + size
    for _ in range(20):
        yield from ((at, 4), (at + 4, 4), (at + 8, 4), (at + 12, 2))
        at += 14 + 48
        yield (at, 4)
        at += 4 + int.from_bytes(log[at : at + 4], "little")


POLICY = re.sub("(any_code|any_key) = false", r"\1 = true", template()).splitlines()
_ODD_TOML = (
    "-1", "1e400", "[]", "[[]]", "{}", "true", '"x"', '["00"]', "9" * 5000, "[" * 3000, "nan",
    "1979-05-27", '["\\ud800"]', '[""]', "[1, 1.5]", "{ snp = 256 }", "'" + "x" * 9000 + "'",
)  # fmt: skip


def _policy(rng, _holds, folder) -> Made:
    """A policy with a field of an odd value or name, or damaged bytes."""
    lines = list(POLICY)
    fields = [i for i, line in enumerate(lines) if "=" in line and line[:2] != "# F"]
    for i in rng.choice(fields, int(rng.integers(1, 3))):
        name, _, value = lines[i].lstrip("# ").partition("=")
        name = pick(rng, (name, name, name, name[1:], "x" * 9000, f'"{name}\\u0000"'))
        lines[i] = f"{name}= {pick(rng, (value, *_ODD_TOML))}"
    text = "\n".join(lines).encode()
    data = mutated_bytes(text, rng) if rng.integers(0, 4) == 0 else text
    path = folder / "policy.toml"
    path.write_bytes(data)

    def run() -> None:
        Policy.load(path)

    return data, run


UNSIGNED_KINDS = (_forged, _signed_by_the_player, _policy)
