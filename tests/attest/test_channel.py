"""Sealed records: their order, their end, and fresh evidence meanwhile."""

import os
import random
from datetime import UTC, datetime, timedelta

import pytest

from attest.sessions import CODE, POLICY, PlayedAttester, channels, prover, verifier
from cloister.attest import record_stream
from cloister.attest.appraiser import Appraiser
from cloister.attest.clock import Clock
from cloister.attest.policy import Policy
from cloister.attest.record_padding import Padding, pad, padded_bytes, unpad
from cloister.attest.record_stream import OVERHEAD_BYTES, RecordStream, RecordType
from cloister.attest.simulated import SimulatedMachine
from cloister.errors import (
    AttestationError,
    ChannelClosedError,
    CloisterError,
    ProtocolError,
    VerificationError,
)

KEY = bytes(32)
STRICTER = Policy.of({"insecure-simulated": {"measurements": [CODE], "min_svn": 2}})


@pytest.mark.parametrize("padding", Padding)
def test_messages_arrive_in_both_directions(padding):
    judges, proves = channels(padding=padding)
    for length in (0, 1, 2, 100, 70000):
        message = random.Random(length).randbytes(length)
        assert proves.open(judges.seal(message)) == message
        assert judges.open(proves.seal(memoryview(message))) == message


def test_ten_thousand_other_orders_of_records():
    """None of them opens beyond the records that stand where they were sealed."""
    draw = random.Random(5)
    sender = RecordStream(KEY)
    records = [sender.seal(RecordType.DATA, bytes([i])) for i in range(8)]
    accepted = 0
    for _ in range(10_000):
        order = [draw.randrange(8) for _ in range(draw.randrange(1, 9))]
        right = next((i for i, one in enumerate(order) if one != i), len(order))
        if right == len(order):
            continue
        receiver = RecordStream(KEY)
        for place in order[:right]:
            assert receiver.open(records[place]) == (RecordType.DATA, bytes([place]))
        try:
            receiver.open(records[order[right]])
            accepted += 1
        except VerificationError:
            pass
    assert accepted == 0


def test_a_record_out_of_order_ends_the_channel():
    judges, proves = channels()
    first, second = judges.seal(b"1"), judges.seal(b"2")
    with pytest.raises(VerificationError, match="expected number 1, found 2"):
        proves.open(second)
    for use in (lambda: proves.open(first), lambda: proves.seal(b""), lambda: proves.exporter("")):
        with pytest.raises(ChannelClosedError, match=r"has ended; .* \(record: expected number"):
            use()


def test_a_record_is_opened_once():
    judges, proves = channels()
    record = judges.seal(b"1")
    proves.open(record)
    with pytest.raises(VerificationError):
        proves.open(record)


def test_every_changed_byte_of_a_record_is_refused():
    record = RecordStream(KEY).seal(RecordType.DATA, b"a message")
    for place in range(len(record)):
        for bit in range(8):
            changed = bytearray(record)
            changed[place] ^= 1 << bit
            with pytest.raises(VerificationError):
                RecordStream(KEY).open(changed)
    for other in (record[:-1], record + b"\0", record[: OVERHEAD_BYTES - 1], b""):
        with pytest.raises(VerificationError):
            RecordStream(KEY).open(other)


def test_a_record_of_the_other_direction_does_not_open():
    judges, _ = channels()
    with pytest.raises(VerificationError):
        judges.open(judges.seal(b"an echo"))


def test_closing_is_said_and_cutting_is_noticed():
    judges, proves = channels()
    last, close = judges.seal(b"last"), judges.close()
    assert proves.open(last) == b"last"
    with pytest.raises(ChannelClosedError, match="other side has closed"):
        proves.open(close)
    with pytest.raises(ChannelClosedError, match="this side has closed"):
        judges.seal(b"")
    judges, proves = channels()
    judges.seal(b"last")
    with pytest.raises(VerificationError):
        proves.open(judges.close())


def test_a_confirmation_is_no_message():
    judges, proves = channels()
    record = judges._out.seal(RecordType.CONFIRMATION, b"again")
    with pytest.raises(VerificationError, match="another type"):
        proves.open(record)
    judges, proves = channels()
    with pytest.raises(AttestationError, match="opened already"):
        proves.confirm(judges.confirmation)


def test_keys_are_used_up(monkeypatch):
    monkeypatch.setattr(record_stream, "MAX_RECORDS", 3)
    judges, _ = channels()
    judges.seal(b"")
    judges.seal(b"")
    with pytest.raises(ProtocolError, match="used up"):
        judges.seal(b"")
    monkeypatch.setattr(record_stream, "MAX_STREAM_BYTES", 100)
    with pytest.raises(ProtocolError, match="used up"):
        RecordStream(KEY).seal(RecordType.DATA, bytes(100))
    monkeypatch.setattr(record_stream, "MAX_RECORD_BYTES", 50)
    with pytest.raises(ProtocolError, match="send at most 34"):
        RecordStream(KEY).seal(RecordType.DATA, bytes(40))


def test_a_copy_of_the_process_may_not_use_the_keys():
    judges, _ = channels()
    child = os.fork()
    if not child:
        try:
            judges.seal(b"under the same nonce")
        except ChannelClosedError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    judges.seal(b"")


@pytest.mark.parametrize("padding", [Padding.PADME, Padding.BLOCKS])
def test_padding_says_little_and_has_one_form(padding):
    for length in (*range(70), 1000, 65528, 65529, 10**6):
        message = bytes([7]) * length
        padded = bytes(pad(message, padding))
        assert unpad(padded, padding) == message
        assert len(padded) == padded_bytes(length + 8, padding)
    assert len({padded_bytes(n, Padding.PADME) for n in range(1 << 14, 1 << 15)}) <= 17
    assert all(padded_bytes(n, Padding.PADME) <= 1.12 * n for n in range(100, 5000))
    judges, proves = channels(padding=padding)
    assert len(judges.seal(bytes(1000))) == len(judges.seal(bytes(1010)))
    assert len(proves.seal(bytes(1000))) == padded_bytes(1008, padding) + OVERHEAD_BYTES


@pytest.mark.parametrize("padding", [Padding.PADME, Padding.BLOCKS])
def test_damaged_padding_is_refused(padding):
    padded = bytes(pad(b"a message of some length", padding))
    spoiled = bytearray(padded)
    spoiled[-1 if padding is Padding.BLOCKS else 0] = 1
    for other in (padded + b"\0", padded[:-1], b"", b"\xff" * 8, spoiled):
        with pytest.raises(VerificationError, match="padding is damaged"):
            unpad(bytes(other), padding)


def test_fresh_evidence_is_of_this_conversation_and_question():
    judges, proves = channels()
    before = judges.appraisal
    assert judges.check(proves.prove(judges.challenge())) is judges.appraisal is not before
    _, others = channels()
    with pytest.raises(AttestationError, match="report data"):
        judges.check(others.prove(judges.challenge()))
    assert judges.ended
    judges, proves = channels()
    old = proves.prove(judges.challenge())
    judges.check(old)
    judges.challenge()
    with pytest.raises(AttestationError, match="report data"):
        judges.check(old)


def test_evidence_without_a_question_is_refused():
    judges, proves = channels()
    evidence = proves.prove(judges.challenge())
    judges.check(evidence)
    with pytest.raises(AttestationError, match="answers no challenge"):
        judges.check(evidence)
    for use in (lambda end: end.challenge(), lambda end: end.check(evidence)):
        _, proves = channels()
        with pytest.raises(AttestationError, match="judges nothing"):
            use(proves)
    judges, _ = channels()
    with pytest.raises(AttestationError, match="proves nothing"):
        judges.prove(bytes(32))
    _, proves = channels()
    with pytest.raises(AttestationError, match="challenge: has 3 bytes"):
        proves.prove(bytes(3))


def test_a_changed_policy_ends_conversations_that_it_refuses():
    judges, proves = channels()
    with pytest.raises(AttestationError, match="svn: expected at least 2, found 1"):
        judges.check(proves.prove(judges.challenge()), appraiser=Appraiser(STRICTER))
    with pytest.raises(ChannelClosedError):
        judges.seal(b"")


def test_a_machine_that_changed_meanwhile_is_refused():
    attester = PlayedAttester()
    asks = verifier()
    answer, proves = prover(attester=attester).answer(asks.offer())
    judges = asks.accept(answer)
    proves.confirm(judges.confirmation)
    attester.machine = SimulatedMachine(CODE, debug=True)
    with pytest.raises(AttestationError, match="debug: expected false"):
        judges.check(proves.prove(judges.challenge()))


def test_evidence_expires():
    times = [datetime(2026, 1, 1, tzinfo=UTC)]
    judges, proves = channels(clock=Clock(lambda: times[-1]))
    assert not judges.expired
    assert not proves.expired
    object.__setattr__(judges.appraisal.evidence, "not_after", times[0] + timedelta(hours=3))
    times.append(times[0] + timedelta(hours=4))
    assert judges.expired


def test_any_error_ends_a_channel():
    judges, _ = channels()
    with pytest.raises(TypeError):
        judges.seal("a text")
    with pytest.raises(ChannelClosedError, match="interrupted"):
        judges.seal(b"")
    assert issubclass(ChannelClosedError, CloisterError)
    assert POLICY.digest == Appraiser(POLICY).policy_digest != STRICTER.digest
