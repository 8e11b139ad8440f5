"""Evidence under a vendor's root makes a run hardware-rooted, and binds how the machine started."""

import hashlib
from dataclasses import dataclass, replace

import pytest

import nets
from attest.forge import NOW, Amd, rsa_key
from attest.test_hostile_evidence import revocation_list
from cloister.attest import sev_snp
from cloister.attest.appraiser import Appraiser
from cloister.attest.certificates import RevocationList
from cloister.attest.clock import Clock
from cloister.attest.policy import Policy
from cloister.attest.verified_evidence import Format
from cloister.errors import AttestationError
from cloister.plan.claims import Extent, Role
from cloister.trusted.session import Session
from trusted.runtimes import MANIFEST, Played
from trusted.test_hosted_session import plan_of

PLAN, FEEDS = plan_of(nets.chain()), nets.samples(nets.chain(), 3)
CODE = hashlib.sha384(b"code").hexdigest()
REPORT_DATA, HOST_DATA, CHIP = 0x50, 0xC0, bytes(range(64)).hex()


@dataclass(frozen=True)
class Guest:
    """A confidential virtual machine of a vendor that tests have made."""

    vendor: Amd
    host_data: bytes
    policy: int = 1 << 17 | 1 << 16
    name: str = "guest"
    format: Format = Format.SEV_SNP

    def evidence(self, report_data):
        changes = [
            (8, self.policy.to_bytes(8, "little")), (REPORT_DATA, report_data),
            (HOST_DATA, self.host_data),
        ]  # fmt: skip
        return self.vendor.report(changes=changes)


@pytest.fixture
def vendor(monkeypatch):
    made = Amd()
    monkeypatch.setattr(sev_snp, "roots", lambda name: (made.root,))
    return made


def appraiser(vendor, **changes):
    """A strict policy: of the code, the chip, and the launch's digest of the manifest."""
    section = {"measurements": [CODE], "chip_ids": [CHIP], **changes}
    policy = Policy.of({"sev-snp": section, "runtime": {"bound_at_launch": True}})
    listed = RevocationList.load(revocation_list(vendor.root, rsa_key("ark")), "list")
    collateral = replace(vendor.collateral, revocation_lists=(listed,))
    return Appraiser(policy, collateral, Clock(lambda: NOW))


def guest(vendor, **changes):
    return Guest(vendor, **{"host_data": MANIFEST.digest, **changes})


def test_a_run_that_hardware_vouches_for_says_so(vendor, tmp_path):
    with (
        Played(tmp_path / "machine").serving(attester=guest(vendor)) as service,
        Session(PLAN, trusted=service.url, appraisal=appraiser(vendor)) as session,
    ):
        report, claims = session.run(FEEDS).report, session.claims()
    assert report.hardware_rooted is True
    shown = report.to_dict()
    assert (shown["hardware_rooted"], shown["appraisal"]["weakened"]) == (True, [])
    assert shown["appraisal"]["claims"]["chip_id"] == CHIP
    assert claims.worst(Role.HOST) is Extent.BOUNDED


def test_a_policy_that_weakens_makes_no_run_hardware_rooted(vendor, tmp_path):
    weak = appraiser(vendor, insecure_allow_debug=True)
    with (
        Played(tmp_path / "machine").serving(attester=guest(vendor)) as service,
        Session(PLAN, trusted=service.url, appraisal=weak) as session,
    ):
        report = session.run(FEEDS).report
    assert report.hardware_rooted is False
    assert report.appraisal.weakened == ("insecure_allow_debug",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host_data": bytes(32)}, "host_data: expected"),
        ({"host_data": hashlib.sha256(b"another start").digest()}, "host_data: expected"),
        ({"policy": 1 << 19 | 1 << 17 | 1 << 16}, "debug: expected false"),
        ({"policy": 1 << 18 | 1 << 17 | 1 << 16}, "migratable: expected false"),
    ],
)
def test_a_machine_that_was_launched_otherwise_gets_nothing(changes, said, vendor, tmp_path):
    with (
        Played(tmp_path / "machine").serving(attester=guest(vendor, **changes)) as service,
        pytest.raises(AttestationError, match=said),
    ):
        Session(PLAN, trusted=service.url, appraisal=appraiser(vendor))


def test_a_genuine_machine_that_the_policy_does_not_list_gets_nothing(vendor, tmp_path):
    """The answer to a relay through another genuine machine."""
    with (
        Played(tmp_path / "machine").serving(attester=guest(vendor)) as service,
        pytest.raises(AttestationError, match="chip_id: expected"),
    ):
        Session(PLAN, trusted=service.url, appraisal=appraiser(vendor, chip_ids=["ff" * 64]))
