"""Attacks on the handshake and on records, each by its name; every one fails."""

import dataclasses
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attest import handshake_oracle as oracle
from attest.sessions import (
    CODE,
    KEY,
    MANIFEST,
    POLICY,
    PlayedAttester,
    channels,
    prover,
    verifier,
)
from cloister.attest import cmw
from cloister.attest.appraiser import Appraiser
from cloister.attest.clock import Clock
from cloister.attest.handshake_messages import SUITES, Direction, Offer
from cloister.attest.policy import Policy
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.verified_evidence import Format
from cloister.errors import AttestationError, VerificationError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FALSE = bytes(range(1, 33))
"""The attacker's X25519 key."""


def shown_by_attacker(offer, evidence):
    """An answer by who has no machine: keys of his own, and evidence that he got elsewhere."""
    return oracle.answer(offer, FALSE, bytes(32), lambda *_: evidence, MANIFEST)[0]


def evidence_of(answer, offered, private, seed):
    """What a genuine machine shows to whoever asks."""
    return oracle.accept(offered, private, seed, answer)[0]


def asked_by_attacker(like, **changes):
    """An offer by the attacker, who can read the answer to it; parts are as the victim's."""
    private, seed = bytes(range(32)), bytes(range(64))
    mine = dataclasses.replace(
        Offer.decode(like),
        x25519=X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(),
        mlkem=MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw(),
        **changes,
    )
    return mine.encode(), private, seed


def test_relay_of_genuine_evidence_to_keys_of_the_attacker():
    """The attacker asks a genuine machine in the victim's words but for the keys."""
    victim = verifier()
    offered, *keys = asked_by_attacker(victim.offer())
    genuine = evidence_of(prover().answer(offered)[0], offered, *keys)
    with pytest.raises(AttestationError, match="report data: expected"):
        victim.accept(shown_by_attacker(victim.offer(), genuine))


def test_relay_of_a_key_only():
    """CVE-2026-33697: evidence that binds the machine's key, and nothing of the conversation."""
    attester, victim = PlayedAttester(), verifier()
    public = X25519PrivateKey.from_private_bytes(FALSE).public_key().public_bytes_raw()
    for bound in (public + bytes(32), hashlib.sha512(public).digest()):
        keyed = cmw.wrap(Format.SIMULATED, attester.evidence(bound))
        with pytest.raises(AttestationError, match="report data: expected"):
            victim.accept(shown_by_attacker(victim.offer(), keyed))
        victim = verifier()


def test_a_relayed_handshake_leaves_the_attacker_without_keys():
    """Who only passes messages on has neither secret; what he makes himself does not open."""
    victim = verifier()
    answer, genuine = prover().answer(victim.offer())
    judges = victim.accept(answer)
    genuine.confirm(judges.confirmation)
    record = judges.seal(b"the victim's input")
    for key in (bytes(32), FALSE, hashlib.sha256(answer).digest()):
        made = oracle.record(key, 1, oracle.DATA, b"told by the attacker")
        with pytest.raises(VerificationError):
            channels()[0].open(made)
    assert b"input" not in record
    assert genuine.open(record) == b"the victim's input"


def test_direction_reuse_evidence_of_a_callee_shown_as_a_callers():
    """A machine serves customers, and calls a broker: its answer to a customer opens no broker."""
    broker = verifier(Direction.CALLER)
    offered, *keys = asked_by_attacker(broker.offer(), direction=Direction.CALLEE)
    genuine = evidence_of(prover(Direction.CALLEE).answer(offered)[0], offered, *keys)
    with pytest.raises(AttestationError, match="report data: expected"):
        broker.accept(shown_by_attacker(broker.offer(), genuine))
    with pytest.raises(AttestationError, match="direction: expected callee-attests, found caller"):
        prover(Direction.CALLEE).answer(broker.offer())


def test_client_evidence_offered_as_servers():
    """The broker asks its caller; the attacker turns the question into an answer to a customer."""
    customer = verifier(Direction.CALLEE)
    offered, *keys = asked_by_attacker(customer.offer(), direction=Direction.CALLER)
    genuine = evidence_of(prover(Direction.CALLER).answer(offered)[0], offered, *keys)
    with pytest.raises(AttestationError, match="report data: expected"):
        customer.accept(shown_by_attacker(customer.offer(), genuine))


def test_direction_is_bound_even_where_all_bytes_are_the_same():
    """The direction is in the hash besides the offer."""
    offer = verifier().offer()
    callee = oracle.Keys(bytes(64), 1, offer, b"", MANIFEST)
    caller = oracle.Keys(bytes(64), 2, offer, b"", MANIFEST)
    assert callee.th != caller.th
    assert callee.prover != caller.prover


def test_replayed_answer_of_an_earlier_conversation():
    answer, _ = prover().answer(verifier().offer())
    with pytest.raises(AttestationError, match="answers another offer"):
        verifier().accept(answer)


def test_replayed_evidence_after_a_restart():
    """The verifier remembers nothing: a fresh nonce and fresh keys are enough."""
    first = verifier()
    offered, *keys = asked_by_attacker(first.offer())
    old = evidence_of(prover().answer(offered)[0], offered, *keys)
    restarted = verifier()
    with pytest.raises(AttestationError, match="another conversation"):
        restarted.accept(shown_by_attacker(restarted.offer(), old))


def test_swapped_records_of_two_sessions():
    """Both sessions are of the same two parties, and stand at the same number."""
    (judges, proves), (others, _) = channels(), channels()
    with pytest.raises(VerificationError, match="belongs to another conversation"):
        proves.open(others.seal(b"of the other session"))
    _, proves = channels()
    with pytest.raises(AttestationError, match="confirmation: record"):
        prover().answer(verifier().offer())[1].confirm(judges.confirmation)
    assert proves.ended == ""


def test_stripped_suite():
    """A better suite is cut from the offer on its way; both ends know the one that is left."""
    asks = verifier()
    asks._offered = dataclasses.replace(asks._offered, suites=(0x0002, *SUITES))
    stripped = dataclasses.replace(asks._offered, suites=SUITES).encode()
    answer, proves = prover().answer(stripped)
    with pytest.raises(AttestationError, match="answers another offer"):
        asks.accept(answer)
    with pytest.raises(AttestationError, match="not confirmed"):
        proves.seal(b"")


def test_a_suite_that_was_not_offered():
    asks = verifier()
    answer = bytearray(prover().answer(asks.offer())[0])
    answer[5:7] = struct.pack(">H", 0x0002)
    with pytest.raises(AttestationError, match="suite: expected 0x0001, found 0x0002"):
        asks.accept(bytes(answer))


def test_stale_policy_answer_for_a_policy_that_was_replaced():
    """The offer names the policy; an answer to the older one does not fit the new offer."""
    stricter = Policy.of({"insecure-simulated": {"measurements": [CODE], "min_svn": 2}})
    old, new = verifier(), verifier(policy=stricter)
    changed = dataclasses.replace(old._offered, policy_digest=stricter.digest).encode()
    answer, _ = prover().answer(changed)
    with pytest.raises(AttestationError, match="answers another offer"):
        old.accept(answer)
    newer = PlayedAttester(SimulatedMachine(CODE, svn=1))
    answer, _ = prover(attester=newer).answer(new.offer())
    with pytest.raises(AttestationError, match="svn: expected at least 2, found 1"):
        new.accept(answer)


def test_stale_policy_of_a_running_conversation():
    judges, proves = channels()
    stricter = Policy.of({"insecure-simulated": {"measurements": ["00" * 32]}})
    with pytest.raises(AttestationError, match="measurement"):
        judges.check(proves.prove(judges.challenge()), appraiser=Appraiser(stricter))
    assert judges.ended


def test_clock_back():
    """A clock that is set back would make expired certificates good again."""
    times = [NOON]
    clock = Clock(lambda: times[-1])
    answering = prover()
    for _ in range(2):
        asks = verifier(clock=clock)
        asks.accept(answering.answer(asks.offer())[0])
    times.append(NOON - timedelta(seconds=1))
    asks = verifier(clock=clock)
    with pytest.raises(AttestationError, match=r"clock: stepped back from 2026-01-01T12:00:00"):
        asks.accept(answering.answer(asks.offer())[0])
    # It stays refused until the time is right again.
    times.append(NOON + timedelta(seconds=1))
    asks = verifier(clock=clock)
    asks.accept(answering.answer(asks.offer())[0])


def test_clock_back_during_a_conversation():
    times = [NOON]
    judges, proves = channels(clock=Clock(lambda: times[-1]))
    times.append(NOON - timedelta(days=1))
    with pytest.raises(AttestationError, match="clock: stepped back"):
        judges.check(proves.prove(judges.challenge()))
    assert judges.ended


class CuttingAttester(PlayedAttester):
    """A platform that keeps the first 32 bytes of what it is asked to bind."""

    def evidence(self, report_data):
        return super().evidence(report_data[:32] + bytes(32))


def test_report_data_cut_to_32_bytes_is_allowed_as_a_named_profile_alone():
    asks = verifier()
    with pytest.raises(AttestationError, match="report data: expected"):
        asks.accept(prover(attester=CuttingAttester()).answer(asks.offer())[0])
    named = Policy.of(
        {
            "insecure-simulated": {
                "measurements": [CODE],
                "report_data": "insecure-first-32-bytes",
            }
        }
    )
    asks = verifier(policy=named)
    channel = asks.accept(prover(attester=CuttingAttester()).answer(asks.offer())[0])
    assert channel.appraisal.weakened == ("report_data",)
    assert not channel.appraisal.hardware_rooted
    other, asks = CuttingAttester(), verifier(policy=named)
    other.evidence = lambda _: PlayedAttester().evidence(bytes(64))
    with pytest.raises(AttestationError, match="report data: expected"):
        asks.accept(prover(attester=other).answer(asks.offer())[0])


LOW_ORDER = (
    bytes(32),
    bytes([1]) + bytes(31),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)


@pytest.mark.parametrize("point", LOW_ORDER, ids=range(len(LOW_ORDER)))
def test_zero_shared_secret(point):
    """Points of small order make the secret zero, whatever the other key is."""
    asks = verifier()
    offer = dataclasses.replace(asks._offered, x25519=point)
    with pytest.raises(AttestationError, match="zero secret"):
        prover().answer(offer.encode())
    answer = bytearray(prover().answer(asks.offer())[0])
    answer[39:71] = point
    with pytest.raises(AttestationError, match="zero secret"):
        asks.accept(bytes(answer))


def test_manifest_of_another_program():
    """The manifest that is shown is not the one that the evidence binds; all else is the same."""
    asks, attester = verifier(), PlayedAttester()
    offer = asks.offer()

    def bound(th, clear):
        other = oracle.Keys(bytes(64), offer[5], offer, clear, MANIFEST).th
        assert other != th
        return cmw.wrap(Format.SIMULATED, attester.evidence(other))

    answer, _ = oracle.answer(offer, FALSE, bytes(32), bound, b"another program")
    with pytest.raises(AttestationError, match="report data: expected"):
        asks.accept(answer)


def test_host_data_unequal_to_the_manifest_hash():
    launched = SimulatedMachine(CODE, host_data=hashlib.sha256(b"another").hexdigest())
    asks = verifier()
    with pytest.raises(AttestationError, match=r"host_data: expected .*launched for another"):
        asks.accept(prover(attester=PlayedAttester(launched)).answer(asks.offer())[0])
    right = SimulatedMachine(CODE, host_data=hashlib.sha256(MANIFEST).hexdigest())
    asks = verifier()
    asks.accept(prover(attester=PlayedAttester(right)).answer(asks.offer())[0])


def test_evidence_that_binds_no_conversation_is_refused_whatever_the_policy(tmp_path):
    """A GPU's report can be relayed: no policy makes a session of it."""
    from attest.cases import GENUINE

    case = next(one for one in GENUINE if "gpu" in one.name or "nvidia" in one.name)
    lenient = {"insecure_allow_any_code": True, "insecure_allow_relayable": True}
    judge = Appraiser(
        Policy.of({"nvidia-gpu": lenient}), case.given(), clock=Clock(lambda: case.at)
    )
    with pytest.raises(AttestationError, match="relayable: expected false"):
        judge.appraise(cmw.wrap(Format.NVIDIA_GPU, case.data), report_data=bytes(64))


@pytest.mark.parametrize("damage", ["kind", "form", "tail", "type", "empty"])
def test_evidence_that_is_wrapped_wrongly(damage):
    attester = PlayedAttester()
    genuine = attester.evidence(bytes(64))
    record = cmw.wrap(Format.SIMULATED, genuine)
    wrong = {
        "kind": cmw.wrap(Format.TDX, genuine),
        "form": genuine,
        "tail": record + b"\0",
        "type": record.replace(b"vnd.cloister", b"vnd.cloistre"),
        "empty": b"",
    }[damage]
    with pytest.raises(AttestationError, match=r"CMW|format|media type"):
        Appraiser(POLICY).appraise(wrong, report_data=bytes(64))
    Appraiser(POLICY).appraise(record, report_data=bytes(64))
    assert json.loads(genuine)["body"]["key"] == KEY.public_key().public_bytes_raw().hex()
