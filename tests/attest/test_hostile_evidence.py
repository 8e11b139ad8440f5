"""Evidence and collateral that are made to be accepted wrongly, or to keep the verifier busy."""

import json
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attest.cases import GENUINE
from attest.forge import NOW, Amd, certificate, ec_key, table
from cloister.attest import cmw, intel, nitro, nvidia_gpu, sev_snp, simulated
from cloister.attest.appraisal import appraise
from cloister.attest.certificates import RevocationList, load_certificates, to_der
from cloister.attest.check_tree import Check, CheckState
from cloister.attest.collateral import Collateral, SignedDocument
from cloister.attest.intel_quote import parse
from cloister.attest.policy import Policy
from cloister.attest.verified_evidence import Revocation
from cloister.attest.verify import verify
from cloister.errors import MAX_TEXT_CHARS, AttestationError, InputError

VCEK_GUID = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes_le


def case(name):
    (found,) = [one for one in GENUINE if one.name == name]
    return found


def gpus():
    return json.loads(case("eight GPUs").data)


def gpu_policy(**fields):
    return Policy.of(
        {
            "nvidia-gpu": {
                "insecure_allow_any_code": True, "insecure_allow_relayable": True,
                "min_manifests": 0, **fields,
            }
        }
    )  # fmt: skip


def revocation_list(issuer, key, *revoked, critical=()):
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(NOW - timedelta(days=1))
        .next_update(NOW + timedelta(days=20))
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.serial_number)
            .revocation_date(NOW - timedelta(days=1))
            .build()
        )
    for extension in critical:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "block", [b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN A-----B", b"-----BEGIN A-----END "]
)
def test_blocks_without_an_end_are_looked_at_once(block):
    with pytest.raises(AttestationError, match="chain"):
        load_certificates(block * ((1 << 20) // len(block)), "chain")


def test_reports_without_an_end_are_looked_at_once():
    block = b"-----BEGIN REPORT-----A"
    with pytest.raises(AttestationError, match="no format is recognised"):
        verify(block * ((4 << 20) // len(block)), now=NOW)


def test_a_table_with_one_certificate_many_times_is_refused(monkeypatch):
    vendor = Amd()
    monkeypatch.setattr(sev_snp, "roots", lambda name: (vendor.root,))
    extended = vendor.report() + table(*[(VCEK_GUID, to_der(vendor.vcek))] * 2)
    with pytest.raises(AttestationError, match="two certificates VCEK"):
        verify(extended, Collateral(certificates=(vendor.ask,)), now=NOW)


def test_a_list_of_changes_is_no_list(tmp_path):
    issuer = certificate("root", ec_key("root"), "root", ec_key("root"), ca=True)
    data = revocation_list(issuer, ec_key("root"), critical=[x509.DeltaCRLIndicator(1)])
    with pytest.raises(AttestationError, match="critical extension"):
        RevocationList.load(data, "list")


@pytest.mark.parametrize("revoked", [False, True])
def test_a_revoked_signer_of_intels_documents_is_refused(monkeypatch, revoked):
    root_key, key = ec_key("intel", ec.SECP256R1), ec_key("tcb", ec.SECP256R1)
    root = certificate("Intel SGX Root CA", root_key, "Intel SGX Root CA", root_key, ca=True)
    signer = certificate("Intel SGX TCB Signing", key, "Intel SGX Root CA", root_key)
    monkeypatch.setattr(intel, "roots", lambda name: (root,))
    listed = revocation_list(root, root_key, *[signer] * revoked)
    r, s = decode_dss_signature(key.sign(b"{}", ec.ECDSA(hashes.SHA256())))
    document = SignedDocument(b"{}", r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    collateral = Collateral((signer,), (RevocationList.load(listed, "list"),))

    def run():
        return intel._verify_document(document, "TCB", collateral, NOW, Check("TCB"))

    if revoked:
        with pytest.raises(AttestationError, match="TCB Signing: Intel has revoked it"):
            run()
    else:
        assert run() > NOW


def test_a_policy_is_of_every_gpu():
    one = case("eight GPUs")
    found = verify(one.data, now=one.at)
    serials = found.claims["serials"]
    assert len(set(serials)) == 8
    appraise(found, gpu_policy(serials=serials), None)
    with pytest.raises(AttestationError, match="serials: expected"):
        appraise(found, gpu_policy(serials=serials[:1]), None)
    mixed = replace(found, claims={**found.claims, "driver_versions": ["new", "old"]})
    with pytest.raises(AttestationError, match="driver_versions: expected new, found new or old"):
        appraise(mixed, gpu_policy(driver_versions=["new"]), None)


def test_one_gpu_does_not_count_twice():
    reports = gpus()
    data = json.dumps([reports[0], reports[0]]).encode()
    with pytest.raises(AttestationError, match="two of the 2 reports are of one GPU"):
        verify(data, now=case("eight GPUs").at)


def test_one_manifest_does_not_count_twice():
    one = case("gpu with manifest")
    given = one.given()
    found = verify(one.data, replace(given, manifests=given.manifests * 2), now=one.at)
    assert found.claims["manifest_count"] == 1
    with pytest.raises(AttestationError, match="manifest_count: expected at least 2"):
        appraise(found, gpu_policy(min_manifests=2), None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_manifest_with_entities_is_refused_in_every_encoding(encoding):
    text = '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    with pytest.raises(AttestationError, match="defines entities"):
        list(nvidia_gpu._references(text.encode(encoding)))


@pytest.mark.parametrize(
    "text",
    [
        r'{"tcb\u0049nfo": {}, "signature": "00"}',
        '{"a": "tcbInfo", "tcbInfo": {}, "signature": "00"}',
    ],
)
def test_a_document_under_an_odd_key_is_refused(tmp_path, text):
    (tmp_path / "document.json").write_text(text)
    with pytest.raises(AttestationError, match="tcbInfo"):
        Collateral.load([tmp_path])


def test_a_list_that_is_there_counts_also_where_another_is_missing(monkeypatch):
    """A policy that accepts unknown revocation does not accept what is known to be revoked."""
    root_key, middle_key, key = (ec_key(one, ec.SECP256R1) for one in ("root", "middle", "leaf"))
    root = certificate("Root", root_key, "Root", root_key, ca=True)
    middle = certificate("Middle", middle_key, "Root", root_key, ca=True)
    leaf = certificate("Leaf", key, "Middle", middle_key)
    monkeypatch.setattr(intel, "roots", lambda name: (root,))

    def judged(*listed):
        given = RevocationList.load(revocation_list(middle, middle_key, *listed), "list")
        check = Check("quote")
        found = intel._revocation([leaf, middle], Collateral((), (given,)), NOW, NOW, check)
        return found, check.parts[0]

    with pytest.raises(AttestationError, match="certificate Leaf: Intel has revoked it"):
        judged(leaf)
    found, made = judged()
    assert found == (Revocation.UNKNOWN, NOW)
    assert made.state is CheckState.NOT_CHECKED
    assert "no list of CN=Root is given" in made.detail


def test_a_certificate_that_is_no_pck_makes_no_quote(monkeypatch):
    one = case("tdx of SPR E4")
    _, *authorities = load_certificates(parse(one.data).pck_chain.rstrip(b"\0"), "chain")
    monkeypatch.setattr(intel, "load_chain", lambda *_: authorities)
    with pytest.raises(AttestationError, match="lacks Intel's extension"):
        verify(one.data, now=one.at)


def test_no_manifest_is_any_code():
    section = {"manifests": ["ab"], "insecure_allow_relayable": True, "min_manifests": 0}
    with pytest.raises(InputError, match="min_manifests: 0 needs insecure_allow_any_code = true"):
        Policy.of({"nvidia-gpu": section})
    Policy.of({"nvidia-gpu": {**section, "insecure_allow_any_code": True}})


def test_a_regular_expression_in_a_nitro_document_is_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr("re.compile", lambda *given: compiled.append(given))
    pattern = cbor2.CBORTag(35, "(?i)[\0-\U0010ffff]")
    for document in (pattern, {"module_id": pattern}, {pattern: 1}):
        parts = [bytes.fromhex("a1013822"), {}, cbor2.dumps(document), bytes(96)]
        with pytest.raises(AttestationError, match="is no CBOR"):
            verify(cbor2.dumps(parts), now=NOW)
    assert not any("(?i)" in pattern for pattern, *_ in compiled)


def test_a_tag_in_a_record_of_evidence_is_refused():
    record = cbor2.dumps([cbor2.CBORTag(35, "(?i)[\0-\U0010ffff]"), b""])
    with pytest.raises(AttestationError, match="expected a CMW record"):
        cmw.unwrap(record)


def test_a_nitro_document_with_a_field_twice_is_refused():
    envelope, _ = nitro.parse(case("nitro, debug").data)
    document = envelope.payload
    assert document[:1] == b"\xa9"
    twice = b"\xaa" + cbor2.dumps("digest") + cbor2.dumps("SHA384") + document[1:]
    parts = [envelope.protected, {}, twice, envelope.signature]
    with pytest.raises(AttestationError, match="is no CBOR"):
        verify(cbor2.dumps(parts), now=case("nitro, debug").at)


def test_more_gpus_than_a_machine_has_are_not_verified():
    listed = gpus()
    many = json.dumps(listed * (nvidia_gpu.MAX_GPUS // len(listed) + 1))
    with pytest.raises(AttestationError, match="has 136, of 128"):
        verify(many.encode(), now=case("eight GPUs").at)


@pytest.mark.parametrize("text", ["x" * 10**6, "\0" * 10**6])
def test_errors_do_not_repeat_a_long_text(text):
    data = json.dumps({"kind": simulated.KIND, "body": {text: 1}, "signature": ""}).encode()
    with pytest.raises(AttestationError) as raised:
        verify(data, now=NOW)
    assert len(str(raised.value)) <= MAX_TEXT_CHARS


def test_collateral_with_half_a_character_is_refused(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"event_log": "\ud800"}))
    with pytest.raises(AttestationError, match=r"log\.json: is damaged"):
        Collateral.load([path])
