"""The rules of a release, one by one: each alone refuses, and none is left out."""

from dataclasses import replace
from datetime import timedelta

import pytest

from attest.cases import GENUINE, LENIENT
from broker.brokers import BEGIN, METER, manifest_for
from bundle.bundles import VENDOR
from cloister.attest.appraisal import Appraisal, appraise
from cloister.attest.check_tree import Check
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.broker.release_ledger import LicenseTerms
from cloister.broker.release_rules import (
    RELEASES_AN_HOUR,
    RULES,
    Machine,
    RefusalKind,
    ReleaseRequest,
    Standing,
    refusal,
)
from cloister.errors import ReleaseError, TicketError
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket

BROKER = b"c" * 32
TICKET = Ticket(
    license="clinic",
    bundle_id=b"b" * 16,
    vendor=VENDOR.public_bytes_raw(),
    first_serial=0,
    last_serial=9,
    quota=10,
    not_before=int(BEGIN.timestamp()),
    not_after=int((BEGIN + timedelta(days=1)).timestamp()),
    outputs=OutputMode.LABEL,
    top=None,
    broker=BROKER,
    counter=CounterRule(CounterKind.LEASE, BROKER),
)
GOOD = ReleaseRequest(
    TICKET, Machine("sev-snp", "ab", "c1"), manifest_for(TICKET), relayable=False, meter=METER,
    broker=BROKER, now=BEGIN + timedelta(hours=1),
    standing=Standing(
        LicenseTerms(chips=2, meters=2), has_bundle=True, chips=1, has_chip=False, meters=1,
        has_meter=False, releases=RELEASES_AN_HOUR - 1,
    ),
)  # fmt: skip


def standing(**changed):
    return {"standing": replace(GOOD.standing, **changed)}


def started(**changed):
    return {"manifest": manifest_for(TICKET, **changed)}


BAD = [
    (RefusalKind.EVIDENCE, {"relayable": True}, "can be relayed"),
    (RefusalKind.RUNTIME, started(bundle="00" * 16), "manifest: bundle: expected 6262.*found 00"),
    (RefusalKind.RUNTIME, started(vendor="00" * 32), "manifest: vendor: expected"),
    (RefusalKind.RUNTIME, started(license="other"), "manifest: license: expected clinic"),
    (RefusalKind.RUNTIME, started(license=""), "found none"),
    (RefusalKind.BROKER, {"broker": b"d" * 32}, "ticket: broker: expected 6464.*, found 6363"),
    (RefusalKind.BROKER, {"ticket": replace(TICKET, broker=None)}, "found none"),
    (RefusalKind.TIME, {"now": BEGIN - timedelta(seconds=1)}, "is not valid before"),
    (RefusalKind.TIME, {"now": BEGIN + timedelta(days=1, seconds=1)}, "expired"),
    (RefusalKind.REVOKED, standing(terms=LicenseTerms(meters=2, revoked=True)), "has revoked it"),
    (RefusalKind.BUNDLE, standing(has_bundle=False), "has no key of it"),
    (RefusalKind.CHIPS, standing(chips=2), "expected one of the 2"),
    (RefusalKind.CHIPS, {"machine": Machine("tdx", "ab", "")}, "names no chip"),
    (RefusalKind.METERS, standing(meters=2), "expected one of the 2"),
    (RefusalKind.RATE, standing(releases=RELEASES_AN_HOUR), "at most 1000 releases an hour"),
]


def test_a_request_that_meets_all_rules_is_not_refused():
    assert refusal(GOOD) is None


@pytest.mark.parametrize(("kind", "changed", "text"), BAD)
def test_each_rule_alone_refuses(kind, changed, text):
    request = replace(GOOD, **changed)
    found = refusal(request)
    assert found is not None
    assert found[0] is kind
    with pytest.raises((ReleaseError, TicketError), match=text):
        raise found[1]
    # The other rules are met.
    assert [rule for rule, check in RULES if raises(check, request)] == [kind]


def raises(check, request):
    try:
        check(request)
    except (ReleaseError, TicketError):
        return True
    return False


def test_every_rule_was_broken_above():
    assert {kind for kind, _ in RULES} == {kind for kind, *_ in BAD}


@pytest.mark.parametrize("changed", [
    standing(chips=2, has_chip=True),
    standing(meters=2, has_meter=True),
    standing(terms=LicenseTerms(chips=None, meters=2), chips=1000),
    {"machine": Machine("tdx", "ab", ""), **standing(terms=LicenseTerms(chips=None, meters=2))},
    {"now": BEGIN},
    {"now": BEGIN + timedelta(days=1)},
])  # fmt: skip
def test_what_is_within_a_limit_is_not_refused(changed):
    assert refusal(replace(GOOD, **changed)) is None


@pytest.mark.parametrize("case", GENUINE, ids=lambda case: case.name)
def test_every_genuine_machine_is_named(case):
    found = appraise(verify(case.data, case.given(), now=case.at), LENIENT, None)
    if found.evidence.relayable:
        with pytest.raises(ReleaseError, match="names no code"):
            Machine.of(found)
        return
    machine = Machine.of(found)
    assert machine.format == case.kind
    assert len(machine.measurement) in (64, 96)
    assert machine.chip


def test_a_tpm_is_named_by_its_registers_and_its_key():
    claims = {"key": b"k" * 34, "pcr0": b"a" * 32, "pcr10": b"b" * 32}
    found = [Machine.of(played(claims | more)) for more in ({}, {"pcr0": b"c" * 32}, {"x": b"y"})]
    assert found[0] == found[2] != found[1]
    assert found[0].format == "tpm"
    assert found[0].chip == (b"k" * 34).hex()
    with pytest.raises(ReleaseError, match="names no code"):
        Machine.of(played({"key": b"k" * 34}))


def played(claims):
    evidence = VerifiedEvidence(
        Format.TPM, bytes(64), claims, Rooted.SOFTWARE, False, Revocation.UNKNOWN, BEGIN,
        Check("evidence"),
    )  # fmt: skip
    return Appraisal(evidence, (), evidence.checks)
