"""A service's side of one conversation: answers once, asks for fresh evidence, ends for good."""

import threading

import numpy as np
import pytest

from attest.sessions import CODE, PlayedAttester, prover, verifier
from cloister.attest.attested_conversation import AttestedConversation, Operation
from cloister.attest.handshake_messages import Direction
from cloister.attest.sealed_messages import (
    CHALLENGE,
    CHECK,
    PROVE,
    as_tensor,
    decode_answer,
    decode_call,
    encode_answer,
    encode_call,
    encode_error,
)
from cloister.attest.session_table import SessionLimits, SessionTable
from cloister.attest.simulated import SimulatedMachine
from cloister.errors import (
    AttestationError,
    BudgetError,
    ChannelClosedError,
    ProtocolError,
    ServiceUnavailable,
)
from cloister.wire.https.admission import QuietLog
from cloister.wire.https.bodies import Body, encode


class Counting:
    """Operations that count their calls; `slow` waits until it may go on."""

    def __init__(self):
        self.calls, self.made, self.closed = 0, 0, []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def operations(self, channel):
        self.made += 1
        return {
            name: Operation(1 << 12, handle)
            for name, handle in (
                ("count", self.count), ("slow", self.slow), ("fail", self.fail),
                ("refuse", self.refuse),
            )
        }  # fmt: skip

    def count(self, body):
        self.calls += 1
        return Body({"calls": self.calls, "error": "a field of this name"}, body.tensors)

    def slow(self, body):
        self.begun.set()
        assert self.go_on.wait(20)
        return self.count(body)

    def fail(self, _):
        raise KeyError("a secret")

    def refuse(self, _):
        raise BudgetError("no more")


class Pair:
    """Both ends: the caller's channel, and the service's conversation."""

    def __init__(self, direction=Direction.CALLEE, *, reattest_s=None, attester=None):
        self.counting, self.now = Counting(), 100.0
        asks = verifier(direction)
        answer, proves = prover(direction, attester=attester).answer(asks.offer())
        judges = asks.accept(answer)
        callee = direction is Direction.CALLEE
        self.caller, serves = (judges, proves) if callee else (proves, judges)
        if not callee:
            self.caller.confirm(serves.confirmation)
        self.talk = AttestedConversation(
            serves, self.counting.operations, closed=self.counting.closed.append,
            reattest_s=reattest_s, log=QuietLog(), clock=lambda: self.now,
        )  # fmt: skip
        self.talk.confirm(self.caller.confirmation)
        self.talk.begin()

    def record(self, operation, *tensors):
        return self.caller.seal(encode_call(operation, {}, tensors))

    def answered(self, record):
        return decode_answer(self.caller.open(self.talk.exchange(memoryview(record))))

    def ask(self, operation, *tensors):
        return self.answered(self.record(operation, *tensors))[0]


def test_a_record_that_comes_twice_is_answered_twice_and_done_once():
    pair = Pair()
    record = pair.record("count")
    first = bytes(pair.talk.exchange(memoryview(record)))
    again = bytes(pair.talk.exchange(memoryview(record)))
    assert first == again
    assert pair.counting.calls == 1
    assert decode_answer(pair.caller.open(first))[0].number("calls") == 1
    assert pair.ask("count").number("calls") == 2


def test_a_record_that_comes_again_while_the_first_is_at_work_waits_for_its_answer():
    pair, answers = Pair(), []
    record = pair.record("slow")

    def exchange():
        answers.append(bytes(pair.talk.exchange(memoryview(record))))

    threads = [threading.Thread(target=exchange) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert pair.counting.begun.wait(20)
    assert not pair.talk.idle
    pair.counting.go_on.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 3
    assert len(set(answers)) == 1
    assert pair.counting.calls == 1


def test_an_older_record_ends_the_conversation():
    pair = Pair()
    old = pair.record("count")
    pair.answered(old)
    pair.ask("count")
    with pytest.raises(ChannelClosedError, match=r"has ended; begin a new one \(the service's log"):
        pair.talk.exchange(memoryview(old))
    assert pair.counting.closed == [pair.talk.channel]
    assert pair.counting.calls == 2


@pytest.mark.parametrize("damage", ["short", "changed", "empty"])
def test_a_damaged_record_ends_the_conversation(damage):
    pair = Pair()
    record = pair.record("count")
    pair.talk.exchange(memoryview(record))
    changed = {"short": record[:-1], "changed": record[:-1] + b"\0\0", "empty": b""}[damage]
    for _ in range(2):
        with pytest.raises(ChannelClosedError):
            pair.talk.exchange(memoryview(changed))
    assert pair.counting.closed == [pair.talk.channel]


def test_what_stands_under_an_answered_header_and_tag_gets_what_was_sent():
    """Nothing of it is done: the bytes between are not even looked at."""
    pair = Pair()
    record = pair.record("count", np.zeros(100, np.uint8))
    first = bytes(pair.talk.exchange(memoryview(record)))
    record[40] ^= 1
    assert bytes(pair.talk.exchange(memoryview(record))) == first
    assert pair.counting.calls == 1


def test_errors_cross_sealed_and_faults_say_nothing():
    pair = Pair()
    found = pair.ask("refuse")
    assert type(found) is BudgetError
    assert str(found) == "no more"
    found = pair.ask("fail")
    assert type(found) is ProtocolError
    assert "secret" not in str(found)
    assert pair.ask("count").text("error") == "a field of this name"


def test_an_operation_bounds_its_calls():
    pair = Pair()
    found = pair.ask("count", np.zeros(1 << 13, np.uint8))
    assert "of 4096 at most" in str(found)
    assert pair.counting.calls == 0


def test_a_sealed_message_of_another_form_is_refused():
    pair = Pair()
    for body in (Body(), Body({"operation": "count"}), Body({"operation": 1, "fields": {}})):
        found = pair.answered(pair.caller.seal(encode(body)))[0]
        assert type(found) is ProtocolError
    assert type(pair.answered(pair.caller.seal(b"no body"))[0]) is ProtocolError
    assert pair.counting.calls == 0
    with pytest.raises(ProtocolError):
        decode_answer(encode(Body({"fields": 1})))


def test_sealed_messages_keep_their_parts():
    tensor = np.arange(3, dtype=np.int64)
    operation, body = decode_call(encode_call("a", {"operation": "b"}, (tensor,)))
    assert (operation, body.fields) == ("a", {"operation": "b"})
    np.testing.assert_array_equal(body.tensors[0], tensor)
    answer, due = decode_answer(encode_answer(Body({"error": "x", "due": 3}), due=True))
    assert (answer.fields, due) == ({"error": "x", "due": 3}, True)
    error, due = decode_answer(encode_error(BudgetError("spent"), due=False))
    assert (type(error), str(error), due) == (BudgetError, "spent", False)


def test_operations_are_made_once_and_closed_once():
    pair = Pair()
    pair.talk.confirm(pair.caller.confirmation)
    pair.talk.begin()
    assert pair.counting.made == 1
    pair.talk.leave("test")
    pair.talk.leave("again")
    assert pair.counting.closed == [pair.talk.channel]
    with pytest.raises(ChannelClosedError):
        pair.talk.exchange(memoryview(b"x" * 64))
    pair.talk.begin()
    assert pair.counting.made == 1


def test_a_fault_at_an_end_does_not_keep_others_from_ending(caplog):
    pair, other = Pair(), Pair()
    pair.talk._closed = pair.counting.fail
    table = SessionTable(SessionLimits())
    for name, one in (("first", pair), ("second", other)):
        table.confirmed(name, one.talk)
    table.close()
    assert other.counting.closed == [other.talk.channel]
    assert "a conversation's end failed: KeyError" in caplog.text


def prove_again(pair):
    nonce = pair.ask(CHALLENGE).array(0, np.uint8, 1).tobytes()
    return pair.ask(CHECK, as_tensor(pair.caller.prove(nonce)))


def test_a_caller_is_told_when_fresh_evidence_is_due_and_ends_without_it():
    pair = Pair(Direction.CALLER, reattest_s=10)
    assert pair.answered(pair.record("count"))[1] is False
    pair.now += 6
    assert pair.answered(pair.record("count"))[1] is True
    prove_again(pair)
    assert pair.answered(pair.record("count"))[1] is False
    pair.now += 11
    with pytest.raises(ChannelClosedError):
        pair.ask("count")
    assert pair.counting.calls == 3
    assert pair.counting.closed == [pair.talk.channel]


def test_late_evidence_is_still_evidence():
    """The caller was silent for long; before anything else it proves itself."""
    pair = Pair(Direction.CALLER, reattest_s=10)
    pair.now += 1000
    prove_again(pair)
    assert pair.ask("count").number("calls") == 1


def test_a_caller_that_changed_meanwhile_ends():
    attester = PlayedAttester()
    pair = Pair(Direction.CALLER, attester=attester)
    attester.machine = SimulatedMachine(CODE, debug=True)
    with pytest.raises(ChannelClosedError):
        prove_again(pair)
    assert "debug: expected false" in pair.talk.ended


def test_a_service_that_proves_itself_does_so_again():
    pair = Pair(Direction.CALLEE)
    evidence = pair.ask(PROVE, as_tensor(pair.caller.challenge())).array(0, np.uint8, 1)
    pair.caller.check(evidence.tobytes())
    with pytest.raises(ChannelClosedError):
        pair.ask(CHALLENGE)
    assert "judges nothing" in pair.talk.ended


def test_the_table_forgets_what_was_not_used():
    pair, half = Pair(), Pair()
    now = [100.0]
    table = SessionTable(SessionLimits(idle_s=60, half_open_s=10), lambda: now[-1])
    table.add_half_open("half", half.talk)
    table.confirmed("whole", pair.talk)
    assert table.find("half") is half.talk
    now.append(111.0)
    assert table.find("whole") is pair.talk
    with pytest.raises(ChannelClosedError, match="not known here"):
        table.find("half")
    table.sweep()
    assert half.talk.ended
    assert not pair.talk.ended
    now.append(161.0)
    with pytest.raises(ChannelClosedError):
        table.find("whole")
    table.sweep()
    assert pair.counting.closed == [pair.talk.channel]


def test_an_answer_is_kept_for_its_time():
    pair, now = Pair(), [100.0]
    table = SessionTable(SessionLimits(answer_s=10), lambda: now[-1])
    table.confirmed("whole", pair.talk)
    record = pair.record("count")
    first = bytes(pair.talk.exchange(memoryview(record)))
    table.sweep()
    assert bytes(pair.talk.exchange(memoryview(record))) == first
    now.append(111.0)
    table.sweep()
    with pytest.raises(ChannelClosedError):
        pair.talk.exchange(memoryview(record))
    assert pair.counting.calls == 1


def test_a_call_in_flight_is_not_idle():
    pair = Pair()
    now = [100.0]
    table = SessionTable(SessionLimits(sessions=1, idle_s=60, kept_s=0), lambda: now[-1])
    table.confirmed("whole", pair.talk)
    thread = threading.Thread(target=pair.ask, args=("slow",))
    thread.start()
    assert pair.counting.begun.wait(20)
    now.append(1000.0)
    table.sweep()
    with pytest.raises(ServiceUnavailable, match="as many sessions"):
        table.confirmed("another", Pair().talk)
    assert table.find("whole") is pair.talk
    pair.counting.go_on.set()
    thread.join()


def test_the_one_unused_for_longest_leaves_and_those_in_use_stay():
    first, second, third = Pair(), Pair(), Pair()
    now = [100.0]
    table = SessionTable(SessionLimits(sessions=2, kept_s=30), lambda: now[-1])
    for name, pair in (("first", first), ("second", second)):
        table.confirmed(name, pair.talk)
    with pytest.raises(ServiceUnavailable):
        table.confirmed("third", third.talk)
    # Its own confirmation again takes no place.
    table.confirmed("second", second.talk)
    now.append(131.0)
    first.now = 131.0
    first.ask("count")
    table.confirmed("third", third.talk)
    assert second.counting.closed == [second.talk.channel]
    assert table.find("first") is first.talk
    assert table.find("third") is third.talk
    table.close()
    assert first.talk.ended == third.talk.ended == "the service was stopped"


def test_half_open_ones_make_room_for_each_other_alone():
    whole, halves = Pair(), [Pair() for _ in range(4)]
    table = SessionTable(SessionLimits(half_open=2), lambda: 100.0)
    table.confirmed("whole", whole.talk)
    for number, pair in enumerate(halves):
        table.add_half_open(str(number), pair.talk)
    assert [bool(pair.talk.ended) for pair in halves] == [True, True, False, False]
    assert table.find("whole") is whole.talk


def test_the_first_appraisal_stands_until_the_next():
    pair = Pair(Direction.CALLER)
    with pytest.raises(AttestationError, match="proved nothing"):
        pair.caller.appraisal  # noqa: B018
    before = pair.talk.channel.appraisal
    prove_again(pair)
    assert pair.talk.channel.appraisal is not before
