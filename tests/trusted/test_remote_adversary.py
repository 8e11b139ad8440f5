"""Who stands on the way, or plays the machine, gets nothing: no input, no plan, no result."""

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import nets
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_service import transport_token
from cloister.attest.handshake import Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.sealed_messages import encode_call
from cloister.attest.simulated import SimulatedAttester, SimulatedMachine
from cloister.base.rng import SystemRandom
from cloister.errors import (
    AttestationError,
    ChannelClosedError,
    CloisterError,
    InputError,
    ProtocolError,
    ServiceUnavailable,
)
from cloister.trusted import hosted_session, remote_session, runtime_service
from cloister.trusted.hosted_session import HostedSession, HostSettings
from cloister.trusted.packed_result import pack_result, unpack_result
from cloister.trusted.packed_values import pack
from cloister.trusted.report import Result
from cloister.trusted.runtime_service import RuntimeLimits
from cloister.trusted.session import Session
from cloister.wire.https import bodies, https_client
from trusted.recording_proxy import RecordingProxy
from trusted.runtimes import MEASUREMENT, Played
from trusted.test_hosted_session import plan_of, plan_of_one

PLAN = plan_of(nets.chain())
FEEDS = nets.samples(nets.chain(), 3)
LEAST = 16
"""Bytes that do not occur by chance."""


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return Played(tmp_path_factory.mktemp("runtime") / "machine")


@pytest.fixture(scope="module")
def url(played):
    with played.serving() as service:
        yield service.url


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote_session, "RETRY_FOR_S", 0.2)


def operations(sent):
    return re.findall(rb"POST /v1/([a-z]+) ", bytes(sent))


def pieces(data, step=64):
    """Parts of a secret; none of them is all one byte, which anything may hold."""
    parts = (data[at : at + LEAST] for at in range(0, len(data) - LEAST, step))
    return [part for part in parts if len(set(part)) > 4]


def secrets(result):
    """What nobody on the way may see: inputs, outputs, the plan, names of layers and values."""
    found = [part for value in FEEDS.values() for part in pieces(value.tobytes())]
    found += [part for value in result.outputs.values() for part in pieces(value.tobytes(), 8)]
    found += pieces(PLAN.to_bytes())
    return [*found, *(node.name.encode() for node in PLAN.graph.nodes)]


def test_no_plaintext_of_input_plan_or_result_is_on_the_wire(url, played, tmp_path):
    with RecordingProxy(tmp_path / "proxy", url) as proxy:
        with Session(PLAN, trusted=proxy.url, appraisal=played.policy()) as session:
            result = session.run(FEEDS)
        seen = bytes(proxy.sent) + bytes(proxy.answered)
    known = secrets(result)
    assert len(known) > 100
    assert not [one for one in known if one in seen]
    # The search would find them: where they are, they occur.
    plain = PLAN.to_bytes() + pack(FEEDS) + pack(result.outputs)
    assert all(one in plain for one in known)


def test_before_the_appraisal_an_offer_leaves_and_nothing_else(url, played, tmp_path):
    """The caller refuses the machine: the whole of what it sent depends on no plan and no input."""
    lengths = set()
    for name, plan in (("one", PLAN), ("other", plan_of(nets.residual()))):
        with (
            RecordingProxy(tmp_path / name, url) as proxy,
            pytest.raises(AttestationError, match="measurement"),
        ):
            Session(plan, trusted=proxy.url, appraisal=played.policy(measurements=["cd" * 48]))
        assert operations(proxy.sent) == [b"attest"]
        lengths.add(len(re.sub(rb"Host: [^\r]*", b"", bytes(proxy.sent))))
    assert len(lengths) == 1


def refusals(played):
    strange = Played(played.folder.parent / "strange")
    debug, other = SimulatedMachine(MEASUREMENT, debug=True), SimulatedMachine("cd" * 48)
    return {
        "debug mode": (SimulatedAttester(played.key, debug), "debug: expected false, found True"),
        "another measurement": (SimulatedAttester(played.key, other), "measurement: expected"),
        "another key": (strange.attester, "key: expected"),
    }


@pytest.mark.parametrize("machine", ["debug mode", "another measurement", "another key"])
def test_a_machine_in(machine, played, tmp_path):
    attester, said = refusals(played)[machine]
    with (
        played.serving(attester=attester) as service,
        RecordingProxy(tmp_path / "proxy", service.url) as proxy,
    ):
        with pytest.raises(AttestationError, match=said):
            Session(PLAN, trusted=proxy.url, appraisal=played.policy())
        assert operations(proxy.sent) == [b"attest"]
        assert not service._callers


def test_replayed_evidence_gets_nothing(url, played, tmp_path):
    with RecordingProxy(tmp_path / "first", url) as proxy:
        Session(PLAN, trusted=proxy.url, appraisal=played.policy()).close()
    first = bytes(proxy.answered)
    length = int(re.search(rb"content-length: (\d+)", first)[1])
    answer = first[: first.index(b"\r\n\r\n") + 4 + length]
    with RecordingProxy(tmp_path / "again", url, answer=lambda _: answer) as proxy:
        with pytest.raises(AttestationError):
            Session(PLAN, trusted=proxy.url, appraisal=played.policy())
        assert operations(proxy.sent) == [b"attest"]


def test_a_machine_that_was_not_appraised_gets_no_memory_of_its_caller(url, played, tmp_path):
    """It announces an answer longer than any of a handshake, and none of it is read."""
    lines = ("HTTP/1.1 200 OK", f"content-type: {bodies.CONTENT_TYPE}", "content-length: 99999")
    head = "\r\n".join((*lines, "", ""))
    with (
        RecordingProxy(tmp_path / "proxy", url, answer=lambda _: head.encode()) as proxy,
        pytest.raises(ProtocolError, match="beyond 69632 B"),
    ):
        Session(PLAN, trusted=proxy.url, appraisal=played.policy())


def test_evidence_of_a_service_before_its_restart_gets_nothing(played, tmp_path):
    answers = []

    def kept(request):
        answers.append(request)

    with (
        played.serving() as service,
        RecordingProxy(tmp_path / "before", service.url, answer=kept) as proxy,
    ):
        Session(PLAN, trusted=proxy.url, appraisal=played.policy()).close()
        records = [one for one in answers if b"/v1/record" in one[:40]]
    with played.serving() as service:
        # Records of a conversation before the restart are none of this service.
        client = https_client.HttpsClient(
            service.url, certificate=https_client.InsecureAnyCertificate(), retry_for_s=0.1
        )
        token = re.search(rb"Bearer (\w+)", records[0])[1].decode()
        client.show(token)
        with pytest.raises(ChannelClosedError, match="not known here"):
            client.call("record", {}, (np.frombuffer(records[0], np.uint8),))
        client.close()


def test_a_call_whose_answer_is_lost_runs_once(played, tmp_path):
    with (
        played.serving() as service,
        RecordingProxy(tmp_path / "proxy", service.url) as proxy,
        Session(PLAN, trusted=proxy.url, appraisal=played.policy()) as session,
    ):
        first = session.run(FEEDS)
        proxy.lose = True
        again = session.run(FEEDS)
        last = session.run(FEEDS)
    ids = [one.transcript.entries[0].request_id for one in (first, again, last)]
    assert ids[2] - ids[1] == ids[1] - ids[0] > 0  # no request in between that nobody saw


@pytest.mark.parametrize("where", ["sent", "answered"])
def test_a_record_that_is_changed_on_the_way_ends_the_session(where, url, played, tmp_path):
    with (
        ChangingProxy(tmp_path / "proxy", url, where=where) as proxy,
        Session(PLAN, trusted=proxy.url, appraisal=played.policy()) as session,
    ):
        session.run(FEEDS)
        proxy.change = True
        with pytest.raises(ChannelClosedError):
            session.run(FEEDS)
        with pytest.raises(ChannelClosedError):
            session.run(FEEDS)


class ChangingProxy(RecordingProxy):
    """Flips one bit of one message."""

    def __init__(self, folder, url, *, where):
        super().__init__(folder, url)
        self.change, self._where = False, where

    def passed(self, data, where):
        if not self.change or where != self._where:
            return data
        self.change = False
        return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def reporting(**changes):
    return lambda outputs, report: (outputs, replace(report, **changes))


def giving(change):
    return lambda outputs, report: ({n: change(v) for n, v in outputs.items()}, report)


LIES = {
    "fewer outputs than inputs": giving(lambda value: value[:1]),
    "more outputs than inputs": giving(lambda value: np.concatenate([value, value])),
    "no output": lambda outputs, report: ({}, report),
    "another output": lambda outputs, report: ({**outputs, "other": np.zeros(3)}, report),
    "another policy": reporting(policy="open"),
    "another number of inputs": reporting(inputs=4),
    "inputs that nobody gave": reporting(inputs_beyond=(3,)),
    "no number": reporting(trusted_ms=float("nan")),
    "no probability": reporting(soundness_bits=float("inf")),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_result_of_other_inputs_is_refused_of_an_accepted_machine_too(
    lie, url, played, monkeypatch
):
    def run(session, packed):
        found = unpack_result(np.frombuffer(known(session, packed), np.uint8), appraisal=None)
        return pack_result(Result(*lie(found.outputs, found.report), found.transcript))

    known = HostedSession.run
    with Session(PLAN, trusted=url, appraisal=played.policy()) as session:
        session.run(FEEDS)
        monkeypatch.setattr(HostedSession, "run", run)
        with pytest.raises(ProtocolError, match=r"result of another plan|cannot be read"):
            session.run(FEEDS)


# ---- callers that keep to no rule


@pytest.fixture
def client(url, played):
    appraiser = Appraiser(played.policy())
    start = partial(Verifier, appraiser, direction=Direction.CALLEE, rng=SystemRandom())
    with AttestedClient(url, start=start, retry_for_s=0.2) as found:
        yield found


def bytes_of(data):
    return (np.frombuffer(data, np.uint8),)


@pytest.mark.parametrize(
    ("operation", "fields", "tensors", "kind", "said"),
    [
        ("run", {}, bytes_of(pack({})), ProtocolError, "not open"),
        ("open", {"digest": "00"}, (), ProtocolError, "not come whole"),
        ("open", {}, (), ProtocolError, "'digest'"),
        ("upload", {"file": "other", "bytes": 9}, bytes_of(b"x"), ProtocolError, "one plan"),
        ("upload", {"file": "plan", "bytes": 0}, bytes_of(b""), CloisterError, "at most"),
        ("upload", {"file": "plan", "bytes": 1 << 60}, bytes_of(b"x"), CloisterError, "at most"),
        ("upload", {"file": "plan", "bytes": 2}, bytes_of(b"xyz"), InputError, "more than the 2"),
        ("upload", {"file": "plan", "bytes": 9}, (np.zeros(3),), ProtocolError, "uint8"),
        ("delete", {}, (), ProtocolError, "not known"),
    ],
)
def test_a_caller_that_breaks_the_rules_is_told_so(operation, fields, tensors, kind, said, client):
    with pytest.raises(kind, match=said):
        client.call(operation, fields, tensors)
    with pytest.raises(ProtocolError, match="not open"):
        client.call("run", {}, bytes_of(pack({})))


def test_a_plan_with_another_digest_is_not_opened(client):
    data = PLAN.to_bytes()
    client.call("upload", {"file": "plan", "bytes": len(data)}, bytes_of(data))
    with pytest.raises(ProtocolError, match="one plan"):
        client.call("upload", {"file": "plan", "bytes": len(data)}, bytes_of(data))
    with pytest.raises(ProtocolError, match="another digest"):
        client.call("open", {"digest": "00" * 32})
    client.call("open", {"digest": PLAN.digest.hex()})
    with pytest.raises(ProtocolError, match="one session"):
        client.call("open", {"digest": PLAN.digest.hex()})
    with pytest.raises(ProtocolError, match="values"):
        client.call("run", {}, bytes_of(b"no values"))


def test_a_digest_alone_gives_nothing_of_anothers_plan(url, played, client):
    with (
        Session(PLAN, trusted=url, appraisal=played.policy()),
        pytest.raises(ProtocolError, match="not come whole"),
    ):
        client.call("open", {"digest": PLAN.digest.hex()})


def test_an_upload_that_never_ends_is_bounded_and_given_back(played):
    with played.serving(limits=RuntimeLimits(plans_bytes=1000)) as service:
        start = partial(
            Verifier, Appraiser(played.policy()), direction=Direction.CALLEE, rng=SystemRandom()
        )
        with AttestedClient(service.url, start=start) as client:
            client.call("upload", {"file": "template", "bytes": 1 << 30}, bytes_of(b"x"))
            client.call("upload", {"file": "plan", "bytes": 1 << 30}, bytes_of(bytes(900)))
            with pytest.raises(InputError, match="--plans-gib"):
                client.call("upload", {"file": "plan", "bytes": 1 << 30}, bytes_of(bytes(900)))
        with AttestedClient(service.url, start=start) as client:
            client.call("upload", {"file": "plan", "bytes": 1 << 30}, bytes_of(bytes(1000)))


def test_a_session_whose_process_is_killed_says_so(played):
    with played.serving() as service:
        session = Session(PLAN, trusted=service.url, appraisal=played.policy())
        (caller,) = service._callers.values()
        caller._session._process.kill()
        with pytest.raises(ServiceUnavailable, match="its process ended"):
            session.run(FEEDS)
        session.close()


@pytest.mark.parametrize("when", ["open", "run"])
def test_a_service_stops_while_a_session_is_without_end_in(when, played, monkeypatch):
    """The session's process is stopped, in place of one that computes without end."""
    monkeypatch.setattr(runtime_service, "STOP_S", 0.5)
    begun, stopped = threading.Event(), []
    known = getattr(HostedSession, when)

    def halted(session, *arguments):
        os.kill(session.pid, signal.SIGSTOP)
        stopped.append(session.pid)
        begun.set()
        return known(session, *arguments)

    def call():
        with (
            contextlib.suppress(ServiceUnavailable),
            Session(PLAN, trusted=service.url, appraisal=played.policy()) as session,
        ):
            session.run(FEEDS)

    monkeypatch.setattr(HostedSession, when, halted)
    monkeypatch.setattr(hosted_session, "OPENING_S", 3600)
    with played.serving(settings=HostSettings(run_s=3600)) as service:
        caller, closing = threading.Thread(target=call), threading.Thread(target=service.close)
        caller.start()
        try:
            assert begun.wait(60)
            closing.start()
            closing.join(60)
            assert not closing.is_alive()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped[0], signal.SIGKILL)
            closing.join()
            caller.join()


def test_a_caller_that_reads_no_answer_stalls_nobody(played):
    net = nets.Net()
    size = 1 << 21
    model = net.model(net.op("Relu", net.input("x", size)))
    plan = plan_of_one(model, size)
    data = plan.to_bytes()
    start = partial(
        Verifier, Appraiser(played.policy()), direction=Direction.CALLEE, rng=SystemRandom()
    )
    with (
        played.serving() as service,
        AttestedClient(service.url, start=start) as client,
        Session(PLAN, trusted=service.url, appraisal=played.policy()) as other,
        contextlib.ExitStack() as stack,
    ):
        client.call("upload", {"file": "plan", "bytes": len(data)}, bytes_of(data))
        client.call("open", {"digest": plan.digest.hex()})
        inputs = bytes_of(pack({"x": np.ones((2, size), np.float32)}))
        record = client.channel.seal(encode_call("run", {"inputs": 2}, inputs))
        stack.enter_context(asked(service.url, transport_token(client.channel), record))
        for _ in range(3):
            assert other.run(FEEDS).report.inputs == 3


def test_callers_that_announce_much_and_send_nothing_stall_nobody(played):
    start = partial(
        Verifier, Appraiser(played.policy()), direction=Direction.CALLEE, rng=SystemRandom()
    )
    with (
        played.serving() as service,
        Session(PLAN, trusted=service.url, appraisal=played.policy()) as other,
        contextlib.ExitStack() as stack,
    ):
        held = service._service._server._house.bodies._held
        for _ in range(4):
            client = stack.enter_context(AttestedClient(service.url, start=start))
            token = transport_token(client.channel)
            client._call("reattest-prove", {}, bytes_of(bytes(32)))
            stack.enter_context(asked(service.url, token, b"", length=remote_session.RUN_BYTES))
            # A pause, since the server reads the head in a thread of its own.
            assert any(token in held or time.sleep(0.01) for _ in range(2000))
        assert other.run(FEEDS).report.inputs == 3


def asked(url, token, record, *, length=None):
    """A connection on which a record was sent, and no answer is read."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = url.removeprefix("https://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    wrapped = context.wrap_socket(sock)
    body = bodies.encode(bodies.Body({}, bytes_of(bytes(record))))
    head = (
        f"POST /v1/record HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {bodies.CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    wrapped.sendall(head.encode() + body)
    return wrapped
