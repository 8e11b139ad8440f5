"""Real evidence of every format gets the verdict that its README states."""

from datetime import UTC, datetime

import pytest
from cryptography import x509

from attest.cases import GENUINE, LENIENT, REFUSED, VECTORS
from cloister.attest.appraisal import appraise
from cloister.attest.certificates import fingerprint, load_certificates, roots, verify_chain
from cloister.attest.check_tree import Check, CheckState
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.attest.verify import verify
from cloister.errors import AttestationError, CloisterError

HELLO = b"Hello, world!"


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda one: one.name)


def verified(case, check=None):
    return verify(case.data, case.given(), now=case.at, check=check)


@named(GENUINE)
def test_genuine_evidence_is_verified_and_says_what_it_is(case):
    tree = Check("evidence")
    found = verified(case, tree)
    assert found.format.value == case.kind
    assert {name: found.claims[name] for name in case.expected} == case.expected
    assert found.not_after > case.at
    assert found.hardware_rooted == (case.kind != "nvidia-gpu")
    assert not any(part.state is CheckState.FAILED for part in tree.parts)
    assert appraise(found, LENIENT, found.report_data).evidence is found


@pytest.mark.parametrize(("case", "text"), REFUSED, ids=lambda one: getattr(one, "name", ""))
def test_what_must_be_refused_is_refused_for_its_reason(case, text):
    tree = Check("evidence")
    with pytest.raises(AttestationError, match=text):
        verified(case, tree)
    failed = [part for part in tree.parts if part.state is CheckState.FAILED]
    assert len(failed) <= 1, "after a failed check nothing else is checked"


@named([case for case in GENUINE if case.expected.get("debug")])
def test_debug_mode_is_refused_by_policy(case):
    section = dict(LENIENT.sections[verified(case).format])
    policy = Policy({verified(case).format: {**section, "insecure_allow_debug": False}})
    with pytest.raises(AttestationError, match="debug: expected false, found true; the policy's"):
        appraise(verified(case), policy, None)


def test_of_documents_for_several_platforms_those_of_the_quotes_platform_are_taken():
    cases = {case.kind: case for case in GENUINE if case.name in ("tdx, up to date", "sgx")}
    given = Collateral.load([VECTORS / f"{kind}/{kind}_quote_collateral.json" for kind in cases])
    for kind, case in cases.items():
        found = verify(case.data, given, now=case.at)
        assert found.claims["tcb_status"] == verified(case).claims["tcb_status"], kind
    # Two of the same platform: neither is preferred.
    two = Collateral.load([VECTORS / "tdx/tdx_quote_collateral.json",
                           VECTORS / "tdx/sample_qeIdentity.json"])  # fmt: skip
    with pytest.raises(AttestationError, match=r"identity of .*: several are given, and 2"):
        verify(cases["tdx"].data, two, now=cases["tdx"].at)


def test_the_report_data_of_intels_sample():
    (case,) = [one for one in GENUINE if one.name == "sgx"]
    found = verified(case)
    assert found.report_data == HELLO.ljust(64, b"\0")
    appraise(found, LENIENT, HELLO.ljust(64, b"\0"))
    with pytest.raises(AttestationError, match="report data: expected"):
        appraise(found, LENIENT, b"Hello, World!".ljust(64, b"\0"))


def test_twelve_measurements_match_the_manifest():
    (case,) = [one for one in GENUINE if one.name == "gpu with manifest"]
    tree = Check("evidence")
    verified(case, tree)
    assert "12 active measurements match" in str(tree.to_json())


def test_eight_gpus_answer_one_nonce():
    (case,) = [one for one in GENUINE if one.name == "eight GPUs"]
    found = verified(case)
    assert len(set(found.claims["serials"])) == 8
    assert found.relayable


def test_a_report_without_a_vendors_list_is_not_accepted_by_default():
    (case,) = [one for one in GENUINE if one.name == "snp coco"]
    found = verified(case)
    strict = Policy.of({"sev-snp": {"measurements": [found.claims["measurement"].hex()]}})
    with pytest.raises(AttestationError, match="revocation: expected good, found unknown"):
        appraise(found, strict, None)


@named([case for case in GENUINE if case.evidence.endswith(("bin", "dat", "quote"))])
@pytest.mark.parametrize("keep", [0, 1, 47, 100, 433, 1183])
def test_truncated_evidence_is_refused(case, keep):
    with pytest.raises(CloisterError):
        verify(case.data[:keep], case.given(), now=case.at)


def test_a_time_without_zone_and_unknown_formats_are_refused():
    (case,) = [one for one in GENUINE if one.name == "snp coco"]
    with pytest.raises(AttestationError, match="has no time zone"):
        verify(case.data, case.given(), now=case.at.replace(tzinfo=None))
    for data in (b"", b"hello", bytes(2000), b"\xff" * 2000, b"{}", b"[]"):
        with pytest.raises(AttestationError, match="no format is recognised"):
            verify(data, now=case.at)


CHAINS = {
    "snp/vcek_turin.der": ("snp/cert_chain_turin.pem", "amd-turin", "SEV-Turin"),
    "snp/milanvlek_chain.pem": ("snp/milanvlek_chain.pem", "amd-milan", "SEV-VLEK-Milan"),
}
SHAPES = {"tdx/sample_tcbInfo.json": "tcb_info", "tdx/sample_qeIdentity.json": "qe_identity"}
PINNED = {"nitro/nitro_root.pem": "nitro"}
OURS = {"README.md", "tpm/exchange.json"}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_without_a_report_are_valid(name):
    chain, root, issuer = CHAINS[name]
    given = load_certificates((VECTORS / name).read_bytes(), name)[:1]
    given += load_certificates((VECTORS / chain).read_bytes(), chain)
    path = [one for i, one in enumerate(given) if one not in given[:i]]
    at = datetime(2025, 6, 19, tzinfo=UTC)
    assert verify_chain(path, roots(root), now=at, check=Check("chain")) > at
    assert issuer in {names(one.subject) for one in path}
    (other,) = {"amd-turin", "amd-milan"} - {root}
    with pytest.raises(AttestationError, match="issuer: expected"):
        verify_chain(path, roots(other), now=at, check=Check("chain"))


def names(name):
    return name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_collateral_are_recognised(name):
    given = Collateral.load([VECTORS / name])
    assert (list(given.documents), given.unused) == ([SHAPES[name]], ())


@pytest.mark.parametrize("name", PINNED)
def test_a_root_among_the_vectors_is_the_pinned_one(name):
    (root,) = load_certificates((VECTORS / name).read_bytes(), name)
    assert [fingerprint(root)] == [fingerprint(one) for one in roots(PINNED[name])]


def test_every_file_has_a_verdict_here_and_a_line_in_the_readme():
    """A vector that is added without a case fails here."""
    cases = [*GENUINE, *(case for case, _ in REFUSED)]
    judged = {name for case in cases for name in (case.evidence, *case.collateral)}
    judged |= {*CHAINS, *(chain for chain, _, _ in CHAINS.values()), *SHAPES, *PINNED}
    judged |= {f"tpm/{name}.bin" for name in ("quote", "quote_rsassa", "quote_rsapss")}  # test_tpm
    there = {f"{path.relative_to(VECTORS)}" for path in VECTORS.rglob("*") if path.is_file()}
    assert there - OURS == judged
    text = (VECTORS / "README.md").read_text()
    for name in there - OURS:
        file = name.rpartition("/")[2]
        # Some are named together: "-new.der, -legacy.der", "case2..4".
        assert any(part in text for part in (name, file, *SHORT.get(name, ()))), name


SHORT = {
    "snp/coco_test-vcek-invalid-legacy.der": ("-legacy.der",),
    "gpu/hopper_cert_chain_case2.txt": ("hopper_cert_chain_case2..4.txt",),
    "gpu/hopper_cert_chain_case3.txt": ("hopper_cert_chain_case2..4.txt",),
    "gpu/hopper_cert_chain_case4.txt": ("hopper_cert_chain_case2..4.txt",),
}


def test_the_copies_are_those_that_are_shared():
    shared = VECTORS.parents[3] / "shared" / "vectors"
    if not shared.is_dir():
        pytest.skip("no shared vectors")
    for path in shared.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert (VECTORS / path.relative_to(shared)).read_bytes() == path.read_bytes(), path
