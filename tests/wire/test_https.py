import concurrent.futures
import contextlib
import http.client
import socket
import ssl
import struct
import threading
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE, Identity
from cloister.base.rng import SystemRandom
from cloister.errors import (
    BudgetError,
    CloisterError,
    EncryptionError,
    InputError,
    ProtocolError,
    ServiceUnavailable,
)
from cloister.wire.https import bodies
from cloister.wire.https.bodies import CONTENT_TYPE, Body
from cloister.wire.https.connection import QUICK_BYTES, Job, Pending, Principal, Route
from cloister.wire.https.https_client import HttpsClient
from cloister.wire.https.server import HttpsServer

MAX_BODY_BYTES = 1 << 20


class Service:
    def __init__(self, folder):
        self.folder = folder
        self.identity = Identity.create(folder, rng=SystemRandom())
        self.seen, self.ran_in = [], []
        self.after, self.release = concurrent.futures.Future(), threading.Event()
        self.server = None
        self.start("127.0.0.1:0")

    def start(self, listen):
        self.server = HttpsServer(
            listen,
            self.admit,
            certificate=self.folder / CERTIFICATE_FILE,
            private_key=self.folder / PRIVATE_KEY_FILE,
        )
        self.url = self.server.url

    def admit(self, token):
        if token == "unknown":
            raise InputError("the token is unknown")
        return Principal(
            token, lambda operation: Route(MAX_BODY_BYTES, partial(self.handle, operation, token))
        )

    def handle(self, operation, token, body):
        self.seen.append((operation, token))
        if operation == "refuse":
            raise BudgetError("sample 3: no\nmore")
        if operation == "crash":
            raise KeyError("the secret")
        if operation == "wait":
            return Job(lambda: Pending(Body({"secret": 7}), self.after))

        def run():
            self.ran_in.append((operation, threading.current_thread().name))
            if operation == "slow":
                self.release.wait(20)
            return Body({"operation": operation, "token": token, **body.fields}, body.tensors)

        # "busy" finds that it cannot be done at once.
        attempts = {"quick": run, "busy": lambda: None}
        return Job(run, attempt=attempts.get(operation))

    def client(self, **options):
        options = {"certificate": self.identity.public.certificate, "retry_for_s": 0.3} | options
        return HttpsClient(self.url, **options)

    def raw(self):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, port = self.url.removeprefix("https://").split(":")
        return http.client.HTTPSConnection(host, int(port), context=context, timeout=10)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(tmp_path_factory.mktemp("identity"))
    yield made
    made.server.close()


def test_values_and_arrays_arrive_as_they_were_sent(service):
    client = service.client(token="a token")
    arrays = (
        np.arange(12, dtype=np.uint32).reshape(3, 4)[:, ::2],
        np.empty((0, 5), np.int16),
        np.array(-7, np.int64),
    )
    for _ in range(3):
        answer = client.call("echo", {"n": 3, "text": "ä", "list": [1, 2]}, arrays)
        assert answer.fields == {
            "operation": "echo", "token": "a token", "n": 3, "text": "ä", "list": [1, 2],
        }  # fmt: skip
        for got, sent in zip(answer.tensors, arrays, strict=True):
            assert got.dtype == sent.dtype
            np.testing.assert_array_equal(got, sent)
    client.close()


def test_errors_cross_by_class_and_in_one_line(service):
    client = service.client()
    with pytest.raises(BudgetError, match=r"^sample 3: no\\nmore$"):
        client.call("refuse", {})
    client.close()


def test_a_fault_of_the_server_tells_nothing(service, caplog):
    client = service.client()
    with pytest.raises(ProtocolError) as caught:
        client.call("crash", {})
    assert "secret" not in str(caught.value)
    assert "the secret" in caplog.text
    client.close()


def test_an_answer_waits_for_what_it_has_to_wait_for(service):
    service.after = concurrent.futures.Future()
    answers = []

    def ask():
        with contextlib.closing(service.client()) as client:
            answers.append(client.call("wait", {}))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    time.sleep(0.3)
    # Others are answered meanwhile, and nothing has left.
    with contextlib.closing(service.client()) as other:
        assert other.call("quick", {"n": 1}).fields["n"] == 1
    assert not answers
    service.after.set_result(None)
    for caller in callers:
        caller.join(20)
    assert [answer.fields for answer in answers] == [{"secret": 7}] * 3


def test_an_answer_whose_condition_fails_does_not_leave(service):
    service.after = concurrent.futures.Future()
    service.after.set_exception(EncryptionError("the ledger is full"))
    with contextlib.closing(service.client()) as client:
        for _ in range(2):
            with pytest.raises(EncryptionError, match="the ledger is full"):
                client.call("wait", {})


def test_work_that_takes_long_holds_up_nobody(service):
    service.release.clear()
    patient, client = service.client(), service.client()
    slow = threading.Thread(target=lambda: patient.call("slow", {}))
    slow.start()
    with contextlib.closing(patient), contextlib.closing(client):
        for _ in range(3):
            client.call("quick", {})
        assert client.call("busy", {"n": 2}).fields["n"] == 2
        client.call("large", {}, (np.zeros(QUICK_BYTES, np.uint8),))
        assert slow.is_alive()
        service.release.set()
        slow.join(20)
    assert not slow.is_alive()
    names = dict(service.ran_in)
    assert names["quick"] == "https"  # the event loop's own
    assert names["slow"].startswith("https_")
    assert names["large"].startswith("https_")
    assert names["busy"].startswith("https_")


def test_another_certificate_is_not_talked_to(service, tmp_path):
    other = Identity.create(tmp_path, rng=SystemRandom())
    seen = len(service.seen)
    client = service.client(certificate=other.public.certificate, token="precious")
    with pytest.raises(ServiceUnavailable, match="another certificate"):
        client.call("echo", {})
    assert len(service.seen) == seen


def test_nobody_listens(service):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    client = HttpsClient(
        url, certificate=service.identity.public.certificate, retry_for_s=0.1
    )  # fmt: skip
    with pytest.raises(ServiceUnavailable, match="cannot be reached"):
        client.call("echo", {})


def test_a_server_that_comes_back_is_asked_again(service):
    client = service.client(retry_for_s=20)
    client.call("echo", {})
    listen = service.url.removeprefix("https://")
    service.server.close()
    done = []
    caller = threading.Thread(target=lambda: done.append(client.call("echo", {"n": 1})))
    caller.start()
    time.sleep(0.3)
    assert not done
    service.start(listen)
    caller.join(20)
    assert done[0].fields["n"] == 1
    client.close()


def test_a_server_that_hangs_is_given_up(service):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        client = HttpsClient(
            url, certificate=service.identity.public.certificate, timeout_s=0.2, retry_for_s=0.0
        )
        with pytest.raises(ServiceUnavailable, match="no answer in time"):
            client.call("echo", {})


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", "/v1/echo", None, {}),
        ("POST", "/other", b"", {"Content-Type": CONTENT_TYPE}),
        ("POST", "/v1/echo", b"", {"Content-Type": "text/plain"}),
        ("POST", "/v1/echo", b"nonsense", {"Content-Type": CONTENT_TYPE}),
        ("POST", "/v1/echo", b"", {"Content-Type": CONTENT_TYPE, "Content-Length": "9" * 18}),
    ],
)
def test_other_requests_are_refused(service, method, path, body, headers):
    seen = len(service.seen)
    connection = service.raw()
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    assert response.status == 400
    answer = bodies.decode(response.read())
    assert answer.text("error") == "ProtocolError"
    assert len(service.seen) == seen
    connection.close()


@pytest.mark.parametrize("stated", ["0" * 20 + "300000000", "1" * 21, "0" * 5000, "+5", "5 5", ""])
def test_a_length_of_another_form_is_refused_unread(service, stated):
    seen = len(service.seen)
    connection = service.raw()
    connection.putrequest("POST", "/v1/echo")
    connection.putheader("Content-Type", CONTENT_TYPE)
    connection.putheader("Content-Length", stated)
    connection.endheaders()
    with contextlib.suppress(ConnectionError):  # but not a time-out: the body would be waited for
        assert connection.getresponse().status == 400
    connection.close()
    assert len(service.seen) == seen


def test_a_length_must_be_stated(service):
    connection = service.raw()
    connection.putrequest("POST", "/v1/echo")
    connection.putheader("Content-Type", CONTENT_TYPE)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_too_large_bodies_are_not_read(service):
    connection = service.raw()
    connection.putrequest("POST", "/v1/echo")
    connection.putheader("Content-Type", CONTENT_TYPE)
    connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()
    big = np.zeros(MAX_BODY_BYTES, np.uint8)
    client = service.client()
    with pytest.raises(CloisterError):
        client.call("echo", {}, (big,))
    client.close()


def test_old_tls_is_not_spoken(service):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = service.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain)


def test_addresses(service):
    for url in (
        "http://127.0.0.1:1",
        "127.0.0.1:1",
        "https://host",
        "https://h:1/path",
        "https://[",
    ):
        with pytest.raises(InputError, match="https://HOST:PORT"):
            HttpsClient(url, certificate=service.identity.public.certificate)
    for listen in ("127.0.0.1", "nonsense:1:x", "256.1.1.1:1"):
        with pytest.raises(InputError):
            service.start(listen)
    with pytest.raises(InputError, match="token"):
        service.client(token="a\nb")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@given(FIELDS, st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=3))
def test_bodies_round_trip(fields, shapes):
    arrays = tuple(np.arange(np.prod(s, dtype=int), dtype=np.int32).reshape(s) for s in shapes)
    found = bodies.decode(bodies.encode(Body(fields, arrays)))
    assert found.fields == fields
    assert len(found.tensors) == len(arrays)
    for got, sent in zip(found.tensors, arrays, strict=True):
        assert got.shape == sent.shape
        np.testing.assert_array_equal(got, sent)


@given(st.data())
def test_damaged_bodies_are_refused_or_decoded_to_something_bounded(data):
    whole = bodies.encode(Body({"a": 1, "b": "x"}, (np.arange(6, dtype=np.uint32),)))
    kind = data.draw(st.sampled_from(["cut", "longer", "flip"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "longer":
        damaged = whole + data.draw(st.binary(min_size=1, max_size=9))
    else:
        position = data.draw(st.integers(0, bodies.PRELUDE.size - 1))
        flipped = bytearray(whole)
        flipped[position] ^= data.draw(st.integers(1, 255))
        damaged = bytes(flipped)
    with pytest.raises(ProtocolError):
        bodies.decode(damaged)


def test_absurd_shapes_allocate_nothing():
    whole = bytearray(bodies.encode(Body({}, (np.zeros((2, 2), np.uint8),))))
    place = bodies.PRELUDE.size + len(b"{}") + 8
    struct.pack_into("<2Q", whole, place, 0, 2**62)
    with pytest.raises(ProtocolError, match="too large"):
        bodies.decode(whole)
    with pytest.raises(ProtocolError, match="cannot be sent"):
        bodies.encode(Body({}, (np.zeros(2, np.complex64),)))
    with pytest.raises(ProtocolError, match="JSON"):
        head = bodies.PRELUDE.pack(bodies.MAGIC, bodies.FORMAT_VERSION, 0, 0, 9, 0)
        bodies.decode(head + b'{"a":NaN}')


def test_fields_of_a_wrong_type_are_named():
    body = Body({"text": 1, "number": True}, (np.zeros(3),))
    for ask in (
        lambda: body.text("text"),
        lambda: body.number("number"),
        lambda: body.mapping("text"),
        lambda: body.text("absent"),
        lambda: body.array(0, np.int64, 1),
        lambda: body.array(1, np.float64, 1),
    ):
        with pytest.raises(ProtocolError):
            ask()
