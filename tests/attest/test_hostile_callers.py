"""What callers can take from an attested service: nothing that other callers need."""

import contextlib
import http.client
import socket
import ssl
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest

from attest.sessions import CODE, POLICY, PlayedAttester, echo, prover, verifier
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_conversation import Operation
from cloister.attest.attested_service import AttestedService
from cloister.attest.handshake_messages import MAX_MESSAGE_BYTES, Direction
from cloister.attest.pending_offers import PendingOffers, offer_digest
from cloister.attest.policy import Policy
from cloister.attest.sealed_messages import as_tensor, encode_call
from cloister.attest.session_table import SessionLimits
from cloister.attest.simulated import SimulatedMachine
from cloister.base.identity import create_certificate
from cloister.errors import (
    AttestationError,
    BudgetError,
    ChannelClosedError,
    FunctionError,
    ProtocolError,
    ServiceUnavailable,
)
from cloister.wire.https.admission import QuietLog, ServerLimits
from cloister.wire.https.bodies import CONTENT_TYPE, Body
from cloister.wire.https.https_client import HttpsClient, InsecureAnyCertificate

CALLER = Direction.CALLER
PATIENCE_S = 20


@pytest.fixture
def serve(tmp_path):
    """Starts services; `serve.closed` has the channels that ended."""
    create_certificate(tmp_path, "attested service")
    with contextlib.ExitStack() as stack:
        closed = []

        def start(side=prover, operations=echo, **options):
            service = AttestedService(
                "127.0.0.1:0", folder=tmp_path, start=side, operations=operations,
                closed=closed.append, **options,
            )  # fmt: skip
            return stack.enter_context(service)

        start.closed = closed
        yield start


def client(service, side=verifier, **options):
    return AttestedClient(service.url, start=side, retry_for_s=0, **options)


def plain(service, token=None):
    return HttpsClient(
        service.url, certificate=InsecureAnyCertificate(), token=token, retry_for_s=0
    )


def secure(service):
    parts = urlsplit(service.url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    made = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
    return context.wrap_socket(made)


def head(operation, length):
    return (
        f"POST /v1/{operation} HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_stranger_may_ask_for_a_handshake_alone(serve):
    with contextlib.closing(plain(serve())) as stranger:
        for operation in ("record", "echo", "describe"):
            with pytest.raises(FunctionError, match="handshake alone"):
                stranger.call(operation, {})
    with (
        contextlib.closing(plain(serve(), "no token")) as stranger,
        pytest.raises(ChannelClosedError, match="not known here"),
    ):
        stranger.call("record", {})


def test_a_strangers_message_is_bounded_before_it_is_read(serve):
    with secure(serve()) as stranger:
        stranger.sendall(head("attest", 4 * MAX_MESSAGE_BYTES))
        response = http.client.HTTPResponse(stranger)
        response.begin()
        assert response.status == 400


@pytest.mark.parametrize("data", [b"", b"CLOA", bytes(1000), bytes(MAX_MESSAGE_BYTES)])
def test_noise_instead_of_an_offer_or_an_answer(serve, data):
    attests, judges = serve(), serve(lambda: verifier(CALLER))
    with contextlib.closing(plain(attests)) as stranger:
        with pytest.raises(AttestationError, match="offer"):
            stranger.call("attest", {}, (as_tensor(data),))
        with pytest.raises(ProtocolError, match="tensor 0"):
            stranger.call("attest", {}, (np.zeros(3, np.float32),))
    with contextlib.closing(plain(judges)) as stranger:
        with pytest.raises(AttestationError, match="offer: has expired"):
            stranger.call("answer", {}, (as_tensor(data[:32]), as_tensor(data)))
        offer = stranger.call("offer", {}).array(0, np.uint8, 1).tobytes()
        named = as_tensor(offer_digest(offer))
        with pytest.raises(AttestationError, match="answer"):
            stranger.call("answer", {}, (named, as_tensor(data)))
        # What was answered once, even by noise, is answered.
        answer, _ = prover(CALLER).answer(offer)
        with pytest.raises(AttestationError, match="answered already"):
            stranger.call("answer", {}, (named, as_tensor(answer)))


def test_slow_strangers_lock_no_caller_out(serve):
    """Half of a body each, and as many as there are places for strangers; then some more."""
    service = serve(server_limits=ServerLimits(strangers=4, per_peer=4, per_caller=4))
    with client(service) as old, contextlib.ExitStack() as stack:
        old.call("echo")
        for _ in range(8):
            slow = stack.enter_context(secure(service))
            slow.sendall(head("attest", 1000) + bytes(10))
        assert old.call("echo", {"n": 1}).number("n") == 1
        with client(service) as new:
            assert new.call("echo", {"n": 2}).number("n") == 2


def test_a_slow_strangers_body_has_a_heads_time(serve):
    service = serve(server_limits=ServerLimits(head_s=0.2, body_s=1000))
    with secure(service) as slow:
        slow.sendall(head("attest", 1000) + bytes(10))
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert response.status == 408


def test_half_open_handshakes_lock_nobody_out(serve):
    service = serve(limits=SessionLimits(half_open=3))
    with client(service) as old, contextlib.closing(plain(service)) as stranger:
        old.call("echo")
        for _ in range(9):
            stranger.call("attest", {}, (as_tensor(verifier().offer()),))
        assert old.call("echo", {"n": 1}).number("n") == 1
        with client(service) as new:
            assert new.call("echo", {"n": 2}).number("n") == 2


def test_unanswered_offers_lock_nobody_out(serve):
    service = serve(lambda: verifier(CALLER), limits=SessionLimits(half_open=3))
    with contextlib.closing(plain(service)) as stranger:
        for _ in range(9):
            stranger.call("offer", {})
    with client(service, lambda: prover(CALLER)) as new:
        assert new.call("echo", {"n": 2}).number("n") == 2


def test_an_offer_lives_for_its_time_and_an_answer_comes_again():
    now, accepted = [0.0], []
    offers = PendingOffers(2, 30.0, log=QuietLog(), clock=lambda: now[-1])
    first, second = verifier(CALLER), verifier(CALLER)
    answers = [prover(CALLER).answer(one.offer())[0] for one in (first, second)]
    names = [offer_digest(one.offer()) for one in (first, second)]
    offers.add(first)
    record = offers.answered(names[0], answers[0], accepted.append)
    assert offers.answered(names[0], answers[0], accepted.append) == record
    assert len(accepted) == 1
    offers.add(second)
    now.append(31.0)
    with pytest.raises(AttestationError, match="has expired"):
        offers.answered(names[1], answers[1], accepted.append)
    offers.add(verifier(CALLER))
    assert len(offers._offers) == 1


def test_a_refusal_comes_again_too():
    offers = PendingOffers(2, 30.0, log=QuietLog())
    asks = verifier(CALLER)
    offers.add(asks)
    other = PlayedAttester(SimulatedMachine("cd" * 32))
    answer, proves = prover(CALLER, attester=other).answer(asks.offer())
    record = offers.answered(offer_digest(asks.offer()), answer, pytest.fail)
    assert offers.answered(offer_digest(asks.offer()), answer, pytest.fail) == record
    with pytest.raises(AttestationError, match="measurement: expected abab"):
        proves.confirm(record)


def test_sessions_are_bounded_and_those_in_use_stay(serve):
    service = serve(limits=SessionLimits(sessions=2, kept_s=PATIENCE_S))
    with client(service) as first, client(service) as second:
        for calling in (first, second):
            calling.call("echo")
        with (
            client(service) as third,
            pytest.raises(ServiceUnavailable, match="as many sessions"),
        ):
            third.call("echo")
        assert first.call("echo", {"n": 1}).number("n") == 1
    assert len(serve.closed) == 2
    with client(service) as fourth:
        fourth.call("echo")


def test_the_least_used_session_leaves_for_a_new_one(serve):
    service = serve(limits=SessionLimits(sessions=1, kept_s=-1.0))
    first = client(service)
    first.call("echo")
    with client(service) as second:
        second.call("echo")
        with pytest.raises(ChannelClosedError, match="not known here"):
            first.call("echo")
        assert second.call("echo", {"n": 1}).number("n") == 1
    first.close()


def test_one_session_does_not_hold_up_others(serve):
    """One has all its threads at work, and sends what it already sent on more connections."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(body):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return body

    service = serve(operations=lambda channel: {"wait": Operation(1 << 10, wait), **echo(channel)})
    busy = client(service)
    busy.call("echo")
    record = busy.channel.seal(encode_call("wait", {}, ()))
    token, answers = busy.channel.exporter("transport token").hex(), []

    def send():
        with contextlib.closing(plain(service, token)) as sends:
            try:
                answers.append(sends.call("record", {}, (as_tensor(record),)).array(0, np.uint8, 1))
            except ServiceUnavailable:
                refused.release()

    refused = threading.Semaphore(0)
    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    with client(service) as other:
        for n in range(5):
            assert other.call("echo", {"n": n}).number("n") == n
    # A call and its repetition wait; what is sent besides may be sent again later.
    assert all(refused.acquire(timeout=PATIENCE_S) for _ in range(2))
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    assert len({answer.tobytes() for answer in answers}) == 1
    busy.close()


def test_many_sessions_that_repeat_slow_calls_leave_threads_to_others(serve):
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(body):
        begun.release()
        assert go_on.wait(PATIENCE_S)
        return body

    slow = {"wait": Operation(1 << 10, wait)}
    service = serve(
        operations=lambda channel: {**slow, **echo(channel)},
        server_limits=ServerLimits(threads=32, wait_s=1),
    )
    with contextlib.ExitStack() as stack:
        threads = []
        for _ in range(8):
            busy = stack.enter_context(client(service))
            busy.call("echo")
            record = as_tensor(busy.channel.seal(encode_call("wait", {}, ())))
            token = busy.channel.exporter("transport token").hex()
            for _ in range(4):
                raw = stack.enter_context(contextlib.closing(plain(service, token)))
                threads.append(threading.Thread(target=repeated, args=(raw, record)))
        for thread in threads:
            thread.start()
        assert all(begun.acquire(timeout=PATIENCE_S) for _ in range(8))
        try:
            with client(service) as other:
                for n in range(5):
                    assert other.call("echo", {"n": n}).number("n") == n
        finally:
            go_on.set()
            for thread in threads:
                thread.join()


def repeated(raw, record):
    with contextlib.suppress(ServiceUnavailable):
        raw.call("record", {}, (record,))


def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(serve, monkeypatch):
    """The connection breaks after the request has left: the client cannot know what happened."""
    calls = []

    def count(body):
        calls.append(body)
        return Body({"calls": len(calls)})

    service = serve(operations=lambda channel: {"count": Operation(1 << 10, count)})
    with AttestedClient(service.url, start=verifier, retry_for_s=PATIENCE_S) as calling:
        calling.call("count")
        exchange, lost = HttpsClient._exchange, []

        def losing(self, connection, operation, request):
            response = exchange(self, connection, operation, request)
            if not lost:
                lost.append(response.read())
                raise ConnectionResetError
            return response

        monkeypatch.setattr(HttpsClient, "_exchange", losing)
        assert calling.call("count").number("calls") == 2
        assert lost
        assert calling.call("count").number("calls") == 3


def test_what_was_said_unsealed_has_no_class(serve, monkeypatch):
    """Who ends the TLS connection in between may say that a budget is spent; nobody believes it."""
    service = serve()
    calling = client(service)
    calling.call("echo")

    def lying(*_, **__):
        raise BudgetError("spent, says somebody")

    monkeypatch.setattr(HttpsClient, "call", lying)
    with pytest.raises(ChannelClosedError, match="spent, says somebody"):
        calling.call("echo")
    assert calling.channel.ended
    calling.close()


def test_a_restarted_service_knows_no_old_conversation(serve):
    first = serve()
    calling = client(first)
    calling.call("echo")
    first.close()
    again = serve()
    calling._https.close()
    calling._https = plain(again, calling.channel.exporter("transport token").hex())
    with pytest.raises(ChannelClosedError, match="restarted; begin a new one"):
        calling.call("echo")
    calling.close()
    assert len(serve.closed) == 1


def test_a_damaged_record_ends_one_conversation_alone(serve):
    service = serve()
    with client(service) as calling, client(service) as other:
        calling.call("echo")
        other.call("echo")
        token = calling.channel.exporter("transport token").hex()
        with contextlib.closing(plain(service, token)) as hostile:
            with pytest.raises(ChannelClosedError):
                hostile.call("record", {}, (as_tensor(bytes(100)),))
            with pytest.raises(ChannelClosedError):
                hostile.call("record", {}, (as_tensor(bytes(100)),))
        with pytest.raises(ChannelClosedError):
            calling.call("echo")
        assert other.call("echo", {"n": 1}).number("n") == 1


def test_a_record_before_the_confirmation_is_refused(serve):
    service = serve()
    asks = verifier()
    with contextlib.closing(plain(service)) as hostile:
        answer = hostile.call("attest", {}, (as_tensor(asks.offer()),)).array(0, np.uint8, 1)
        channel = asks.accept(answer.tobytes())
        hostile.show(channel.exporter("transport token").hex())
        assert channel.confirmation
        record = as_tensor(channel.seal(encode_call("echo", {}, ())))
        with pytest.raises(AttestationError, match="confirmation: is missing"):
            hostile.call("record", {}, (record,))
        with pytest.raises(ProtocolError, match="records alone"):
            hostile.call("attest", {}, (record,))
    assert not serve.closed


def test_a_client_asks_for_fresh_evidence_by_itself(serve):
    attester = PlayedAttester()
    service = serve(lambda: prover(attester=attester))
    with client(service, reattest_s=-1.0) as calling:
        for count in range(3):
            assert len(attester.asked) == 1 + count
            calling.call("echo")
        attester.machine = SimulatedMachine(CODE, debug=True)
        with pytest.raises(AttestationError, match="debug: expected false"):
            calling.call("echo")
        with pytest.raises(ChannelClosedError):
            calling.call("echo")


def test_a_changed_policy_is_asked_of_a_running_service(serve):
    with client(serve()) as calling:
        calling.reattest(Appraiser(POLICY))
        stricter = Policy.of({"insecure-simulated": {"measurements": [CODE], "min_svn": 2}})
        with pytest.raises(AttestationError, match="svn: expected at least 2"):
            calling.reattest(Appraiser(stricter))
        with pytest.raises(ChannelClosedError):
            calling.call("echo")


def test_a_service_has_fresh_evidence_of_its_callers(serve):
    attester = PlayedAttester()
    service = serve(lambda: verifier(CALLER), reattest_s=1e9)
    with client(service, lambda: prover(CALLER, attester=attester)) as calling:
        calling.call("echo")
        assert len(attester.asked) == 1
        (found,) = service._table._sessions.values()
        found._proved_at -= 0.6e9
        calling.call("echo")
        calling.call("echo")
        assert len(attester.asked) == 2
        calling.call("echo")
        assert len(attester.asked) == 2
