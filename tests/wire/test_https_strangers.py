"""What strangers, and one caller, can take from an HTTPS server: nothing that others need."""

import asyncio
import contextlib
import errno
import http.client
import logging
import socket
import ssl
import threading

import numpy as np
import pytest

from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE, Identity
from cloister.base.rng import SystemRandom
from cloister.errors import InputError, ProtocolError, ServiceUnavailable
from cloister.wire.https import bodies
from cloister.wire.https.admission import LOG_LINES_PER_MINUTE, ServerLimits
from cloister.wire.https.bodies import CONTENT_TYPE, Body
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.head import MAX_HEAD_BYTES
from cloister.wire.https.https_client import HttpsClient
from cloister.wire.https.server import HttpsServer

MIB = 1 << 20
LARGE = 256 * MIB
LONG = 48 << 10
"""Letters of an answer that is sent in one piece."""
PATIENCE_S = 20


class Service:
    """Tokens are names: "a" and "b" are callers, all else is a stranger's."""

    def __init__(self, identity, folder, limits):
        self.certificate = identity.public.certificate
        self.seen, self.release, self.working = [], threading.Event(), threading.Semaphore(0)
        self.server = HttpsServer(
            "127.0.0.1:0",
            self.admit,
            certificate=folder / CERTIFICATE_FILE,
            private_key=folder / PRIVATE_KEY_FILE,
            limits=limits,
        )
        host, port = self.server.url.removeprefix("https://").split(":")
        self.address = host, int(port)

    def admit(self, token):
        if token not in ("a", "b"):
            raise InputError("the token is missing or unknown")
        return Principal(token, lambda operation: Route(LARGE, lambda body: self.job(operation)))

    def job(self, operation):
        self.seen.append(operation)

        def run():
            if operation.startswith("wait"):
                self.working.release()
                self.release.wait(PATIENCE_S)
            if operation == "crash":
                raise KeyError("a secret")
            return Body({"operation": operation, "more": "x" * (operation == "long") * LONG})

        lane = operation if operation.startswith("wait") else None
        return Job(run, lane=lane, nbytes=64 * MIB if operation == "waits-large" else 0)

    def client(self, token="a", **options):
        options = {"certificate": self.certificate, "retry_for_s": PATIENCE_S} | options
        return contextlib.closing(HttpsClient(self.server.url, token=token, **options))

    def plain(self):
        return socket.create_connection(self.address, PATIENCE_S)

    def secure(self):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.plain())

    def ask(self, operation, token="a"):
        with self.client(token) as client:
            return client.call(operation, {}).text("operation")


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    return Identity.create(folder, rng=SystemRandom()), folder


@pytest.fixture
def serve(identity):
    made = []

    def start(**limits):
        made.append(Service(*identity, ServerLimits(**limits)))
        return made[-1]

    yield start
    for service in made:
        service.release.set()
        service.server.close()


def head(length, token=None, operation="x"):
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST /v1/{operation} HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"{authorization}Content-Length: {length}\r\n\r\n"
    ).encode()


def answer(connection):
    """Status and message of the server's answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, bodies.decode(response.read()).fields.get("message")


def closed(connection):
    """Wait until the other side has closed the connection."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize("token", [None, "c", "é"])
def test_a_stranger_is_refused_before_a_byte_of_its_body(serve, token):
    service = serve()
    with service.secure() as stranger:
        stranger.sendall(head(LARGE, token))
        status, message = answer(stranger)
        assert (status, message) == (401, "the token is missing or unknown")
    assert service.seen == []


def test_the_body_of_a_stranger_is_not_read(serve):
    service = serve()
    with service.secure() as stranger:
        stranger.sendall(head(LARGE))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < LARGE:
                stranger.sendall(bytes(MIB))
                sent += MIB
        # What the two kernels and a buffer of the server take.
        assert sent < LARGE // 4
    assert service.ask("x") == "x"


def test_a_client_with_a_wrong_token_is_told_so_however_large_its_request(serve):
    service = serve()
    with (
        service.client("c") as client,
        pytest.raises(InputError, match="token is missing or unknown"),
    ):
        client.call("x", {}, (np.zeros(32 * MIB, np.uint8),))


@pytest.mark.parametrize("half", ["connected", "head"])
def test_half_open_connections_lock_out_nobody(serve, half):
    service = serve(strangers=8, per_peer=8)
    with contextlib.ExitStack() as held:
        strangers = []
        for _ in range(40):
            if half == "connected":
                strangers.append(held.enter_context(service.plain()))
                continue
            with contextlib.suppress(OSError):
                strangers.append(held.enter_context(service.secure()))
                strangers[-1].sendall(b"POST /v1/x HTTP/1.1\r\nX: ")
        assert service.ask("x") == "x"
        assert closed(strangers[0])


def test_strangers_do_not_close_a_caller_s_connection(serve):
    service = serve(strangers=4, per_peer=4)
    with service.client() as client, contextlib.ExitStack() as held:
        client.call("x", {})
        connection = client._connection
        for _ in range(20):
            held.enter_context(service.plain())
        client.call("x", {})
        assert client._connection is connection


def test_a_head_has_a_deadline_and_a_size(serve):
    service = serve(head_s=0.3)
    with service.plain() as silent:
        assert closed(silent)
    with service.secure() as slow:
        slow.sendall(b"POST /v1/x HTTP/1.1\r\nX: ")
        assert closed(slow)
    with service.secure() as long:
        long.sendall(b"POST /v1/x HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES)
        assert answer(long)[0] == 400
        assert closed(long)


def test_a_caller_between_two_requests_has_a_deadline(serve):
    service = serve(idle_s=0.3)
    with service.secure() as caller:
        request = bodies.encode(Body())
        caller.sendall(head(len(request), "a") + request)
        assert answer(caller)[0] == 200
        assert closed(caller)


def test_a_body_has_a_deadline(serve):
    service = serve(body_s=0.3, bytes_per_s=1 << 40)
    with service.secure() as caller:
        caller.sendall(head(1000, "a") + b"half")
        assert answer(caller) == (408, "the request took too long")
    assert service.seen == []


def test_answers_are_not_kept_for_a_caller_that_takes_none(serve):
    """It asks on without reading; the next answer waits for the one before it, and not for ever."""
    service = serve(body_s=0.5)
    body = bodies.encode(Body({}, (np.zeros(4 << 10, np.uint32),)))
    asked = 2000
    with service.secure() as client, pytest.raises((ConnectionError, ssl.SSLError)):
        for _ in range(asked):
            client.sendall(head(len(body), "a", "long") + body)
    assert 0 < len(service.seen) < asked
    assert service.ask("x") == "x"


def test_bodies_in_flight_are_bounded(serve):
    service = serve(body_bytes=2 * MIB, wait_s=0.3)
    request = bodies.encode(Body({}, (np.zeros(MIB // 2, np.uint8),)))
    with service.secure() as first, service.secure() as second, service.secure() as other:
        first.sendall(head(len(request), "a") + request[:1000])
        # The rest of the caller's share is too small for the next one ..
        second.sendall(head(len(request) + MIB // 2, "a"))
        assert answer(second) == (503, "the server is busy; ask again later")
        # .. and another caller has its own.
        other.sendall(head(len(request), "b") + request)
        assert answer(other)[0] == 200
        first.sendall(request[1000:])
        assert answer(first)[0] == 200


def test_a_client_asks_again_while_the_server_is_busy(serve, monkeypatch):
    service = serve(body_bytes=2 * MIB, wait_s=0.05)
    array = np.zeros(MIB // 2, np.uint8)
    request, pauses = bodies.encode(Body({}, (array,))), []
    with service.secure() as first, service.client() as client:
        first.sendall(head(MIB, "a") + b"x")

        def pause(seconds):
            pauses.append(seconds)
            if len(pauses) == 3:
                first.close()

        monkeypatch.setattr("cloister.wire.https.https_client.time.sleep", pause)
        assert client.call("x", {}, (array,)).text("operation") == "x"
        assert len(pauses) >= 3
    assert len(request) < MIB


def test_a_client_gives_up_on_a_server_that_stays_busy(serve):
    service = serve(body_bytes=2, wait_s=0.05)
    with service.secure() as first, service.client(retry_for_s=0.0) as client:
        first.sendall(head(10, "a") + b"x")
        with pytest.raises(ServiceUnavailable, match="busy"):
            client.call("x", {})


def test_one_caller_does_not_take_all_connections(serve):
    service = serve(connections=8, per_caller=2)
    with contextlib.ExitStack() as held:
        request = bodies.encode(Body())
        own = [held.enter_context(service.secure()) for _ in range(5)]
        for connection in own:
            connection.sendall(head(len(request), "a") + request)
            assert answer(connection)[0] == 200
        assert closed(own[0])
        assert service.ask("x", "b") == "x"


def test_waiting_jobs_of_one_lane_leave_threads_to_the_others(serve):
    service = serve(threads=16)
    clients = [service.client() for _ in range(24)]
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(client) for client in clients]
        askers = [
            threading.Thread(target=one.call, args=("wait-one", {}), daemon=True) for one in opened
        ]
        for asker in askers:
            asker.start()
        for _ in range(2):
            assert service.working.acquire(timeout=PATIENCE_S)
        # More of them wait than there are threads; another lane's work is done.
        assert service.ask("x", "b") == "x"
        assert all(asker.is_alive() for asker in askers)
        service.release.set()
        for asker in askers:
            asker.join(PATIENCE_S)
        assert not any(asker.is_alive() for asker in askers)


def test_memory_of_work_in_flight_is_bounded(serve):
    service = serve(memory_bytes=128 * MIB, wait_s=0.2)
    with service.client() as first, service.client(retry_for_s=0.0) as second:
        asker = threading.Thread(target=first.call, args=("waits-large", {}))
        asker.start()
        assert service.working.acquire(timeout=PATIENCE_S)
        with pytest.raises(ServiceUnavailable, match="busy"):
            second.call("waits-large", {})
        service.release.set()
        asker.join(PATIENCE_S)
    assert service.ask("waits-large") == "waits-large"


def test_hostile_requests_leave_few_lines_and_no_traceback(serve, caplog):
    service = serve()
    with caplog.at_level(logging.DEBUG):
        with service.client() as client:
            for _ in range(2 * LOG_LINES_PER_MINUTE):
                with pytest.raises(ProtocolError, match="see its log"):
                    client.call("crash", {})
        for sent in (b"\x16\x03\x01garbage" * 9, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100):
            with service.plain() as stranger:
                stranger.sendall(sent)
                assert closed(stranger)
            with service.secure() as stranger:
                stranger.sendall(sent + b"\r\n\r\n")
                assert closed(stranger)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= LOG_LINES_PER_MINUTE
    assert all("\n" not in line.getMessage() and not line.exc_info for line in lines)
    assert "KeyError: 'a secret'" in lines[0].getMessage()


def test_a_process_without_descriptors_goes_on_when_it_has_some(serve, monkeypatch, caplog):
    loop, left = asyncio.selector_events.BaseSelectorEventLoop, [3]
    accept = loop.sock_accept

    async def full(self, sock):
        found = await accept(self, sock)
        if left[0]:
            left[0] -= 1
            found[0].close()
            raise OSError(errno.EMFILE, "Too many open files")
        return found

    monkeypatch.setattr(loop, "sock_accept", full)
    service = serve()
    assert service.ask("x") == "x"
    assert left == [0]
    assert "Too many open files" in caplog.text


def test_a_server_closes_while_strangers_hang_on(serve):
    service = serve()
    with service.plain() as one, service.secure() as two:
        two.sendall(b"POST")
        service.server.close()
        assert closed(one)
        assert closed(two)
