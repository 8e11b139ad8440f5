"""Attacks by evidence that is genuine, or forged by whoever holds no vendor's key: each is refused.

Each test is named after its attack, first shows that the machine itself is accepted, and then what
the attacker shows instead.
"""

import hashlib
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attest.cases import GENUINE, LENIENT
from attest.forge import NOW, Amd, ec_key
from attest.forge_intel import Intel, qe_identity, tcb_info, tcb_level
from attest.played_tpm import DATA, PlayedTpm
from cloister.attest import intel, sev_snp
from cloister.attest.appraisal import appraise
from cloister.attest.appraiser import Appraiser
from cloister.attest.clock import Clock
from cloister.attest.cmw import wrap
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.verified_evidence import Format
from cloister.attest.verify import verify
from cloister.errors import AttestationError

CODE = hashlib.sha384(b"code").hexdigest()
MANIFEST = b'{"program": "a runtime"}'
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
UNKNOWN = {"insecure_allow_unknown_revocation": True}


@pytest.fixture
def amd(monkeypatch):
    vendor = Amd()
    monkeypatch.setattr(sev_snp, "roots", lambda name: (vendor.root,))
    return vendor


@pytest.fixture
def td(monkeypatch):
    vendor = Intel()
    monkeypatch.setattr(intel, "roots", lambda name: (vendor.root,))
    return vendor


def snp(vendor, *changes, data=DATA, **options):
    report = vendor.report(changes=[(0x50, data), *changes], **options)
    return verify(report, vendor.collateral, now=NOW)


def snp_policy(**fields):
    return Policy.of({"sev-snp": {"measurements": [CODE], **UNKNOWN, **fields}})


def quote(vendor, *body, tdx=True):
    info = tcb_info(tcb_level("UpToDate", tdx=(5, 0, 2)), tdx=tdx, modules=[(1, [(5, "UpToDate")])])
    given = vendor.collateral(info=info, identity=qe_identity(tdx=tdx))
    place = 520 if tdx else 320
    return verify(vendor.quote(tdx=tdx, body=[(place, DATA), *body]), given, now=NOW)


def intel_policy(tdx=True, **fields):
    code = {"mrtd": ["00" * 48]} if tdx else {"mrenclave": ["00" * 32]}
    return Policy.of({"tdx" if tdx else "sgx": {**code, **UNKNOWN, **fields}})


def refuses(text, found, policy, data=DATA, **options):
    with pytest.raises(AttestationError, match=text):
        appraise(found, policy, data, **options)


def test_relay_through_another_genuine_machine(amd, monkeypatch):
    """Code, mode and the vendor's signature are right: only a list of chips tells them apart."""
    policy = snp_policy(chip_ids=[amd.chip.hex()])
    assert appraise(snp(amd), policy, DATA)
    sibling = Amd(chip=bytes(range(1, 65)))
    monkeypatch.setattr(sev_snp, "roots", lambda name: (sibling.root,))
    assert appraise(snp(sibling), snp_policy(), DATA)
    refuses("chip_id: expected", snp(sibling), policy)


def test_relay_through_another_machines_tpm():
    own, sibling = (PlayedTpm(key=ec_key(name, ec.SECP256R1)) for name in ("own", "sibling"))
    found = verify(own.evidence(), now=NOW)
    section = {"pcr4": [found.claims["pcr4"].hex()], "keys": [found.claims["key"].hex()]}
    policy = Policy.of({"tpm": section})
    assert appraise(found, policy, DATA)
    refuses("key: expected", verify(sibling.evidence(), now=NOW), policy)


def test_a_program_that_plays_a_machine():
    """Of every platform whose root is in software: accepted by name, and never hardware-rooted."""
    simulated = SimulatedMachine("ab" * 32).evidence(DATA, key=KEY)
    found = verify(simulated, now=NOW)
    refuses(r"no section \[insecure-simulated\]", found, LENIENT)
    named = Policy.of({"insecure-simulated": {"measurements": ["ab" * 32]}})
    assert not appraise(found, named, DATA).hardware_rooted
    tpm = verify(PlayedTpm().evidence(), now=NOW)
    refuses(r"no section \[tpm\]", tpm, LENIENT)
    section = {"pcr4": [tpm.claims["pcr4"].hex()], "keys": [tpm.claims["key"].hex()]}
    assert not appraise(tpm, Policy.of({"tpm": section}), DATA).hardware_rooted


def test_a_gpu_somewhere_presented_as_the_machine():
    (case,) = [one for one in GENUINE if one.name == "gpu with manifest"]
    found = verify(case.data, case.given(), now=case.at)
    strict = {"manifests": found.claims["manifests"]}
    refuses("relayable: expected false", found, Policy.of({"nvidia-gpu": strict}), None)
    named = Policy.of({"nvidia-gpu": {**strict, "insecure_allow_relayable": True}})
    assert not appraise(found, named, found.report_data).hardware_rooted


def test_replayed_evidence(amd, td):
    """Evidence of an earlier conversation, whose 64 bytes were others."""
    fresh = hashlib.sha512(b"this conversation").digest()
    for found, policy in ((snp(amd), snp_policy()), (quote(td), intel_policy())):
        assert appraise(found, policy, DATA)
        refuses("report data: expected", found, policy, fresh)


def test_replayed_evidence_of_a_tpm_after_a_restart():
    """Its counter of starts is signed: evidence from before a start is told apart from after."""
    before, after = (verify(PlayedTpm(resets=n).evidence(), now=NOW) for n in (3, 4))
    section = {"pcr4": [before.claims["pcr4"].hex()], "keys": [before.claims["key"].hex()]}
    policy = Policy.of({"tpm": {**section, "max_reset_count": 3}})
    assert appraise(before, policy, DATA)
    refuses("reset_count: expected at most 3, found 4", after, policy)


def test_a_clock_set_back_to_when_old_evidence_was_valid(amd):
    report = wrap(Format.SEV_SNP, amd.report(changes=[(0x50, DATA)]))
    times = iter([NOW, NOW + timedelta(days=31), NOW + timedelta(days=29)])
    appraiser = Appraiser(snp_policy(), amd.collateral, Clock(lambda: next(times)))
    assert appraiser.appraise(report, report_data=DATA)
    with pytest.raises(AttestationError, match="certificate SEV-VCEK: time: expected"):
        appraiser.appraise(report, report_data=DATA)
    with pytest.raises(AttestationError, match="clock"):
        appraiser.appraise(report, report_data=DATA)


@pytest.mark.parametrize("days", [-2, 31, 9000])
def test_a_clock_that_jumps(amd, days):
    """Certificates that are not valid yet, or no more, are refused by their names."""
    with pytest.raises(AttestationError, match="certificate SEV-VCEK: time: expected"):
        verify(amd.report(), amd.collateral, now=NOW + timedelta(days=days))


def test_report_data_cut_to_32_bytes(amd):
    """Only where the policy names the profile, which takes the root away."""
    cut = snp(amd, data=DATA[:32] + bytes(32))
    refuses("report data: expected", cut, snp_policy())
    profile = snp_policy(report_data="insecure-first-32-bytes")
    appraised = appraise(cut, profile, DATA)
    assert "report_data" in appraised.weakened
    assert not appraised.hardware_rooted
    refuses("report data: expected", snp(amd, data=bytes(32) + DATA[32:]), profile)


def test_report_data_that_is_short(amd):
    """A question of 32 bytes is not answered by 32 bytes and zeros that nobody asked for."""
    padded = snp(amd, data=DATA[:32] + bytes(32))
    refuses("number of bytes: expected 32, found 64", padded, snp_policy(), DATA[:32])
    assert appraise(padded, snp_policy(), DATA[:32] + bytes(32))


@pytest.mark.parametrize(
    ("change", "text", "insecure"),
    [
        ((8, (1 << 17 | 1 << 19).to_bytes(8, "little")), "debug: expected false", "debug"),
        ((8, (1 << 17 | 1 << 18).to_bytes(8, "little")), "migratable: expected", "migration"),
        ((0x30, b"\1"), "vmpl: expected at most 0, found 1", None),
        ((0x30, b"\3"), "vmpl: expected at most 0, found 3", None),
    ],
    ids=["debug", "migratable", "VMPL 1", "VMPL 3"],
)
def test_debug_vmpl_above_0_and_migratable_of_sev_snp(amd, change, text, insecure):
    assert appraise(snp(amd), snp_policy(), DATA)
    found = snp(amd, change)
    refuses(text, found, snp_policy())
    if insecure:
        allowed = snp_policy(**{f"insecure_allow_{insecure}": True})
        assert not appraise(found, allowed, DATA).hardware_rooted


@pytest.mark.parametrize("bit", [*range(8), 29, 63])
def test_debug_and_migratable_of_tdx(td, bit):
    assert appraise(quote(td), intel_policy(), DATA)
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    names = {29: "migratable", 63: "perfmon"}
    refuses(
        f"{names.get(bit, 'debug')}: expected false", quote(td, (120, attributes)), intel_policy()
    )


def test_debug_of_sgx(td):
    policy = intel_policy(tdx=False)
    assert appraise(quote(td, tdx=False), policy, DATA)
    refuses("debug: expected false", quote(td, (48, b"\7"), tdx=False), policy)
    refuses("initialised: expected true", quote(td, (48, b"\4"), tdx=False), policy)


def test_a_launch_for_another_manifest(amd, td):
    """host_data, mrconfigid and config_id have to be the digest of the manifest that is shown."""
    digests = {
        "sev-snp": (hashlib.sha256, lambda value: (snp(amd, (0xC0, value)), snp_policy())),
        "tdx": (hashlib.sha384, lambda value: (quote(td, (184, value)), intel_policy())),
        "sgx": (
            hashlib.sha512,
            lambda value: (quote(td, (192, value), tdx=False), intel_policy(tdx=False)),
        ),
    }
    for digest, launched in digests.values():
        found, policy = launched(digest(MANIFEST).digest())
        assert appraise(found, policy, DATA, manifest=MANIFEST).manifest
        text = "host_data: expected|mrconfigid: expected|config_id: expected"
        refuses(text, found, policy, manifest=MANIFEST + b" ")
        cut, policy = launched(digest(MANIFEST).digest()[:-1] + b"\0")
        refuses(text, cut, policy, manifest=MANIFEST)


def test_a_launch_that_binds_no_manifest_where_that_is_asked_for(amd):
    found, zeros = snp(amd), bytes(32)
    assert found.claims["host_data"] == zeros
    sections = {"sev-snp": {"measurements": [CODE], **UNKNOWN}}
    bound = Policy.of({**sections, "runtime": {"bound_at_launch": True}})
    refuses("host_data: expected", found, bound, manifest=MANIFEST)
    assert appraise(found, Policy.of(sections), DATA, manifest=MANIFEST)


def test_firmware_that_can_still_fall_back(amd):
    """The host states a TCB for which it has a certificate, and has not committed to it."""
    least = {"microcode": 213, "snp": 23}
    assert appraise(snp(amd), snp_policy(min_tcb=least), DATA)
    for place, name in ((0x1E0, "committed_tcb"), (0x1F0, "launch_tcb")):
        old = snp(amd, (place, amd.tcb(microcode=212)))
        refuses(f"{name}: expected at least", old, snp_policy(min_tcb=least))


def test_a_key_of_a_cloud_provider_where_a_chips_is_asked_for(monkeypatch):
    vendor = Amd(leaf="SEV-VLEK")
    monkeypatch.setattr(sev_snp, "roots", lambda name: (vendor.root,))
    refuses("signing_key: expected VCEK, found VLEK", snp(vendor), snp_policy())
    provider = {"signing_keys": ["VLEK"], "csp_ids": ["CN=cc-us-east-2.amazonaws.com"]}
    assert appraise(snp(vendor), snp_policy(**provider), DATA)
    provider["csp_ids"] = ["CN=cc-eu-west-1.amazonaws.com"]
    refuses("csp_id: expected CN=cc-eu-west-1", snp(vendor), snp_policy(**provider))


def test_a_root_that_comes_with_the_evidence(amd):
    """The names are the vendor's, the keys the attacker's."""
    assert snp(amd)
    evil = Amd(root_key="evil")
    given = Collateral(certificates=(evil.vcek, evil.ask, evil.root))
    with pytest.raises(AttestationError, match="SEV-Genoa: is not signed by ARK-Genoa"):
        verify(evil.report(), given, now=NOW)


def test_an_old_quoting_enclave_hidden_by_leaving_out_its_identity(td):
    """Without Intel's documents a policy refuses; a debugged enclave every policy does."""
    bare = verify(td.quote(body=[(520, DATA)]), now=NOW)
    refuses("tcb_status: expected UpToDate, found no such claim", bare, intel_policy())
    lax = intel_policy(insecure_allow_unknown_tcb=True)
    assert "insecure_allow_unknown_tcb" in appraise(bare, lax, DATA).weakened
    with pytest.raises(AttestationError, match="quoting enclave: attributes: expected"):
        verify(td.quote(body=[(520, DATA)], qe=[(48, b"\x17")]), now=NOW)


def test_evidence_of_one_format_behind_the_media_type_of_another(amd):
    report = amd.report(changes=[(0x50, DATA)])
    appraiser = Appraiser(snp_policy(), amd.collateral, Clock(lambda: NOW))
    assert appraiser.appraise(wrap(Format.SEV_SNP, report), report_data=DATA)
    with pytest.raises(AttestationError):
        appraiser.appraise(wrap(Format.TDX, report), report_data=DATA)
