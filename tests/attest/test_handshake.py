"""The two messages of a handshake: every changed byte, and every form that no message has."""

import dataclasses
import os

import pytest

from attest.sessions import CODE, PlayedAttester, channels, prover, verifier
from attest.test_handshake_vectors import Drawn
from cloister.attest.handshake_messages import (
    MAX_CONTEXT_BYTES,
    MAX_MESSAGE_BYTES,
    SUITES,
    Direction,
    Offer,
    ReceivedAnswer,
)
from cloister.attest.record_padding import Padding
from cloister.attest.simulated import SimulatedMachine
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import AttestationError, ChannelClosedError, InputError

DRAWN = InsecureSeededRandom(1).random_bytes(128)


def same_verifier(direction=Direction.CALLEE):
    """A verifier that makes the same offer each time."""
    return verifier(direction, context=b"about", rng=Drawn(DRAWN))


@pytest.mark.parametrize("direction", Direction)
def test_every_changed_byte_of_the_offer_is_refused(direction):
    offer = same_verifier(direction).offer()
    answers, proves = 0, prover(direction)
    for place in range(len(offer)):
        changed = bytearray(offer)
        changed[place] ^= 1 << place % 8
        try:
            answer, channel = proves.answer(bytes(changed))
        except AttestationError:
            continue
        answers += 1
        judges = same_verifier(direction)
        with pytest.raises(AttestationError):
            judges.accept(answer)
        with pytest.raises(AttestationError):
            channel.seal(b"")
    # Nonce, keys, policy digest and context can only be noticed by the verifier.
    assert answers > 1200


@pytest.mark.parametrize("direction", Direction)
def test_every_changed_byte_of_the_answer_is_refused(direction):
    answer, _ = prover(direction).answer(same_verifier(direction).offer())
    same_verifier(direction).accept(answer)
    for place in range(len(answer)):
        changed = bytearray(answer)
        changed[place] ^= 1 << place % 8
        with pytest.raises(AttestationError):
            same_verifier(direction).accept(bytes(changed))


def test_every_changed_byte_of_the_confirmation_is_refused():
    asks = same_verifier()
    answer, _ = prover().answer(asks.offer())
    confirmation = asks.accept(answer).confirmation
    for place in range(len(confirmation)):
        asks = same_verifier()
        answer, proves = prover().answer(asks.offer())
        changed = bytearray(asks.accept(answer).confirmation)
        changed[place] ^= 1 << place % 8
        with pytest.raises(AttestationError):
            proves.confirm(bytes(changed))
        assert proves.ended


@pytest.mark.parametrize("cut", ["offer", "answer"])
def test_cut_and_longer_messages_are_refused(cut):
    asks = same_verifier()
    offer = asks.offer()
    answer, _ = prover().answer(offer)
    message = offer if cut == "offer" else answer
    others = [message[:length] for length in range(0, len(message), 7)]
    for other in (*others, message[:-1], message + b"\0", message * 60):
        with pytest.raises(AttestationError):
            (Offer.decode if cut == "offer" else same_verifier().accept)(other)


def test_an_offer_has_one_encoding():
    offer = same_verifier().offer()
    assert Offer.decode(offer).encode() == offer


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [(0, 0, "first bytes"), (4, 2, "expected version 1, found 2; use the same version"),
     (5, 0, "is not known"), (5, 3, "is not known"), (6, 9, "is not known"),
     (7, 17, "is not known"), (7, 0, "length of its context|suite: expected 0x0001")],
)  # fmt: skip
def test_an_offer_of_another_form_is_refused(place, value, text):
    offer = bytearray(same_verifier().offer())
    offer[place] = value
    with pytest.raises(AttestationError, match=text):
        prover().answer(bytes(offer))


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [(0, 0, "first bytes"), (4, 9, "expected version 1, found 9"),
     (6, 9, "suite: expected 0x0001, found 0x0009")],
)  # fmt: skip
def test_an_answer_of_another_form_is_refused(place, value, text):
    asks = same_verifier()
    answer = bytearray(prover().answer(asks.offer())[0])
    answer[place] = value
    with pytest.raises(AttestationError, match=text):
        asks.accept(bytes(answer))


def test_an_offer_is_answered_once():
    asks = verifier()
    answer, _ = prover().answer(asks.offer())
    asks.accept(answer)
    with pytest.raises(AttestationError, match="answered already"):
        asks.accept(answer)


def test_a_copy_of_the_process_may_not_accept():
    """Both would have the same keys, and count from zero."""
    asks = verifier()
    answer, _ = prover().answer(asks.offer())
    child = os.fork()
    if not child:
        try:
            asks.accept(answer)
        except AttestationError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asks.accept(answer)


def test_a_prover_answers_its_context_alone():
    offer = verifier(context=b"this bundle").offer()
    prover(context=b"this bundle").answer(offer)
    with pytest.raises(AttestationError, match=r"context: expected 6f74.*, found 7468"):
        prover(context=b"other").answer(offer)
    with pytest.raises(InputError, match="1025 bytes"):
        verifier(context=bytes(MAX_CONTEXT_BYTES + 1))


def test_a_manifest_that_is_too_long_is_refused_by_its_own_side():
    with pytest.raises(AttestationError, match="shorten the manifest"):
        prover(manifest=bytes(MAX_MESSAGE_BYTES)).answer(verifier().offer())


def test_both_ends_know_the_same():
    for padding in Padding:
        judges, proves = channels(padding=padding, context=b"about")
        assert judges.exporter("a") == proves.exporter("a") != proves.exporter("b")
        assert judges.context == proves.context == b"about"
        assert judges.manifest == proves.manifest
        assert len(judges.appraisal.evidence.report_data) == 64


def test_nothing_leaves_or_enters_before_the_keys_are_confirmed():
    asks = verifier()
    judges = asks.accept(prover().answer(asks.offer())[0])
    for use in (lambda end: end.seal(b"secret"), lambda end: end.open(judges.confirmation)):
        _, proves = prover().answer(verifier().offer())
        with pytest.raises(AttestationError, match="not confirmed yet"):
            use(proves)
        with pytest.raises(ChannelClosedError):
            proves.confirm(judges.confirmation)


def test_the_prover_is_told_under_its_keys_why_it_is_refused():
    other = PlayedAttester(SimulatedMachine("cd" * 32))
    asks = verifier()
    answer, proves = prover(attester=other).answer(asks.offer())
    with pytest.raises(AttestationError, match="measurement"):
        asks.accept(answer)
    assert CODE.encode() not in asks.refusal
    with pytest.raises(AttestationError, match="refuses this side's evidence: measurement: exp"):
        proves.confirm(asks.refusal)
    assert proves.ended


def test_a_suite_that_is_not_known_is_passed_over():
    asks = same_verifier()
    more = dataclasses.replace(asks._offered, suites=(0x7F00, *SUITES))
    asks._offered = more
    answer, _ = prover().answer(more.encode())
    assert ReceivedAnswer.decode(answer).clear.suite == SUITES[0]
    asks.accept(answer)
    none = dataclasses.replace(more, suites=(0x7F00,))
    with pytest.raises(AttestationError, match="suite: expected 0x0001, found 0x7f00"):
        prover().answer(none.encode())
