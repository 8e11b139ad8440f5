"""What surrounds a verdict: the clock, the wrapper, the runtime's manifest, the policy's digest."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta, timezone

import cbor2
import pytest

from attest.cases import GENUINE, LENIENT
from attest.sessions import CODE, KEY, MANIFEST, POLICY
from cloister.attest import cmw
from cloister.attest.appraisal import LAUNCH_FIELDS, appraise
from cloister.attest.appraiser import Appraiser
from cloister.attest.check_tree import Check, CheckState
from cloister.attest.clock import SYSTEM_CLOCK, Clock
from cloister.attest.policy import RULES, Policy, RuntimeRules
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.errors import AttestationError, InputError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DATA = bytes(64)
DIGEST = hashlib.sha256(MANIFEST)
SECTION = {"measurements": [CODE]}


def judged(policy, *, manifest=MANIFEST, host_data="00" * 32):
    evidence = SimulatedMachine(CODE, host_data=host_data).evidence(DATA, key=KEY)
    return Appraiser(policy, clock=Clock(lambda: NOON)).appraise(
        cmw.wrap(Format.SIMULATED, evidence), report_data=DATA, manifest=manifest
    )


def policy_of(**runtime):
    return Policy.of({"insecure-simulated": SECTION, "runtime": runtime})


def test_a_clock_never_steps_back():
    times = [NOON]
    clock = Clock(lambda: times[-1])
    assert clock.now() == clock.now() == NOON
    times.append(NOON.astimezone(timezone(timedelta(hours=5))) + timedelta(seconds=2))
    assert clock.now() == NOON + timedelta(seconds=2)
    times.append(NOON + timedelta(seconds=1))
    with pytest.raises(AttestationError, match=r"clock: stepped back from .*set it right"):
        clock.now()
    times.append(datetime(2026, 1, 2))
    with pytest.raises(AttestationError, match="no time zone"):
        clock.now()
    assert SYSTEM_CLOCK.now() <= SYSTEM_CLOCK.now()


def test_threads_that_share_a_clock_raise_no_false_alarm():
    clock, found = Clock(), []

    def many():
        try:
            for _ in range(2000):
                clock.now()
        except AttestationError as error:
            found.append(error)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found


@pytest.mark.parametrize("kind", Format)
def test_a_wrapper_keeps_format_and_bytes(kind):
    for length in (0, 1, 23, 24, 255, 256, 65535, 65536):
        evidence = b"\x58" * length
        assert cmw.unwrap(cmw.wrap(kind, evidence)) == (kind, evidence)
    media_type, value = cbor2.loads(cmw.wrap(kind, b"evidence"))
    assert (media_type.endswith(kind.value), value) == (True, b"evidence")


@pytest.mark.parametrize(
    "record",
    [
        [], ["application/vnd.cloister.evidence+tdx"], {"type": b""}, "text",
        ["application/vnd.cloister.evidence+tdx", "text"],
        ["application/vnd.cloister.evidence+sev", b""], ["text/plain", b""], [1, b""],
        ["application/vnd.cloister.evidence+tdx", b"", 1],
    ],
)  # fmt: skip
def test_what_is_no_wrapper_is_refused(record):
    with pytest.raises(AttestationError, match="expected a CMW record"):
        cmw.unwrap(cbor2.dumps(record))


def test_a_wrapper_has_one_encoding():
    record = cmw.wrap(Format.TDX, b"evidence")
    longer = record[:-9] + b"\x58\x08" + b"evidence"
    assert cbor2.loads(longer) == cbor2.loads(record)
    for other in (longer, record + b"\0", record[:-1], b"\x9f" + record[1:] + b"\xff", b"\xff"):
        with pytest.raises(AttestationError, match="CMW"):
            cmw.unwrap(other)


def test_a_manifest_is_shown():
    found = judged(POLICY)
    assert found.manifest == DIGEST.digest()
    assert found.to_json()["manifest"] == DIGEST.hexdigest()
    assert "manifest" not in judged(POLICY, manifest=None).to_json()


def test_manifests_that_are_accepted():
    assert judged(policy_of(manifests=[DIGEST.hexdigest()])).manifest == DIGEST.digest()
    with pytest.raises(AttestationError, match=r"manifest: expected 0000.*manifests of .runtime."):
        judged(policy_of(manifests=["00" * 32]))


@pytest.mark.parametrize("rules", [{"manifests": ["00" * 32]}, {"bound_at_launch": True}])
def test_a_manifest_that_is_asked_for_has_to_be_given(rules):
    with pytest.raises(AttestationError, match="manifest: expected the runtime's manifest, found"):
        judged(policy_of(**rules), manifest=None)


def test_a_digest_given_at_launch_is_compared():
    strict = policy_of(bound_at_launch=True)
    assert judged(strict, host_data=DIGEST.hexdigest())
    with pytest.raises(AttestationError, match=r"expected .*found 0000.*bound_at_launch"):
        judged(strict)
    with pytest.raises(AttestationError, match=r"host_data: expected .*launched for another"):
        judged(POLICY, host_data="11" * 32)
    found = judged(POLICY).checks.parts[-1].parts[-1]
    assert (found.name, found.state) == ("launch", CheckState.NOT_CHECKED)


def test_a_policy_that_pins_the_field_itself_decides():
    pinned = Policy.of({"insecure-simulated": {**SECTION, "host_data": ["11" * 32]}})
    assert judged(pinned, host_data="11" * 32)
    with pytest.raises(AttestationError, match="host_data: expected 1111"):
        judged(pinned, host_data=DIGEST.hexdigest())


def test_a_platform_without_such_a_field_is_not_bound_at_launch():
    claims = {f"pcr{i}": bytes(48) for i in range(9)} | {"debug": False}
    found = VerifiedEvidence(
        Format.NITRO, DATA, claims, Rooted.HARDWARE, False, Revocation.UNKNOWN, NOON, Check("")
    )
    section = {"insecure_allow_any_code": True}
    assert appraise(found, Policy.of({"nitro": section}), DATA, manifest=MANIFEST)
    strict = Policy.of({"nitro": section, "runtime": {"bound_at_launch": True}})
    with pytest.raises(AttestationError, match=r"launch: expected .*found none"):
        appraise(found, strict, DATA, manifest=MANIFEST)


LENGTHS = {Format.SEV_SNP: 32, Format.TDX: 48, Format.SGX: 64, Format.SIMULATED: 32}


@pytest.mark.parametrize("kind", LENGTHS)
def test_launch_fields_have_the_length_of_their_digest(kind):
    """Each is a field of the format's section too, so that a policy can pin it."""
    name, digest_of = LAUNCH_FIELDS[kind]
    assert digest_of(MANIFEST).digest_size == LENGTHS[kind]
    assert any(name in rule.claims and rule.length == LENGTHS[kind] for rule in RULES[kind])
    assert set(LAUNCH_FIELDS) == set(LENGTHS)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"manifest": []}, "'manifest' is not known; choose manifests, bound_at_launch"),
        ({"manifests": []}, "not empty"), ({"manifests": ["00"]}, "64 hexadecimal digits"),
        ({"manifests": "00" * 32}, "list"), ({"bound_at_launch": 1}, "true or false"),
        ([], "section"),
    ],
)  # fmt: skip
def test_runtime_sections_that_cannot_be_used(section, text):
    with pytest.raises(InputError, match=rf"\[runtime\].*{text}"):
        Policy.of({"insecure-simulated": SECTION, "runtime": section})
    with pytest.raises(InputError, match="accepts no format"):
        Policy.of({"runtime": {}})


def test_every_field_of_a_policy_changes_its_digest():
    base = Policy.of({"insecure-simulated": SECTION})
    others = [
        Policy.of({"insecure-simulated": {**SECTION, **more}})
        for more in (
            {"min_svn": 1}, {"keys": ["00" * 32]}, {"insecure_allow_debug": True},
            {"chip_ids": ["00"]}, {"chip_ids": ["0000"]}, {"measurements": ["00", "01"]},
            {"measurements": ["01", "00"]}, {"report_data": "insecure-first-32-bytes"},
        )
    ] + [policy_of(bound_at_launch=True), policy_of(manifests=["00" * 32])]  # fmt: skip
    assert len({one.digest for one in (base, *others)}) == len(others) + 1
    same = Policy.of({"insecure-simulated": {"min_svn": 0, **SECTION}, "runtime": {}})
    assert same.digest == base.digest
    assert base.runtime == RuntimeRules()


REAL = [case for case in GENUINE if case.kind in tuple(LAUNCH_FIELDS)]


@pytest.mark.parametrize("case", REAL, ids=[case.name for case in REAL])
def test_real_evidence_says_what_its_launch_was_given(case):
    """None of the vectors was launched for this manifest: each is refused, or was given nothing."""
    found = verify(case.data, case.given(), now=case.at)
    name, digest_of = LAUNCH_FIELDS[found.format]
    given = found.claims[name]
    assert len(given) == digest_of(MANIFEST).digest_size
    strict = Policy(LENIENT.sections, RuntimeRules(bound_at_launch=True))
    digest = digest_of(MANIFEST).hexdigest()
    with pytest.raises(AttestationError, match=f"{name}: expected {digest}"):
        appraise(found, strict, found.report_data, manifest=MANIFEST)
    if any(given):
        with pytest.raises(AttestationError, match="launched for another manifest"):
            appraise(found, LENIENT, found.report_data, manifest=MANIFEST)
    else:
        assert appraise(found, LENIENT, found.report_data, manifest=MANIFEST)
