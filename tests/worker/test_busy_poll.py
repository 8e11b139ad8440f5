"""Looking for a message before going to sleep."""

import os
import socket

import pytest

import cloister.base._native as native
import nets
from cloister.errors import WorkerUnavailable
from cloister.trusted import session as session_module
from cloister.trusted.session import Session
from cloister.wire import process
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker import serve, shm_server
from cloister.worker.serve import main
from trusted.test_session import plan_of
from wire.loopback import ask, blinded, linear, slow


@pytest.fixture()
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_it_finds_a_message_and_leaves_it_there(pair):
    ours, theirs = pair
    ours.send(b"packet")
    assert native.busy_poll(theirs.fileno(), 10**7)
    assert theirs.recv(100, socket.MSG_DONTWAIT) == b"packet"


def test_it_gives_up_when_nothing_comes(pair):
    assert not native.busy_poll(pair[1].fileno(), 100)
    assert not native.busy_poll(pair[1].fileno(), 0)


def test_it_finds_the_end(pair):
    ours, theirs = pair
    ours.close()
    assert native.busy_poll(theirs.fileno(), 10**7)
    assert theirs.recv(100) == b""


def test_a_descriptor_that_is_closed_is_left_to_recv():
    one, other = socket.socketpair()
    number = other.detach()
    os.close(number)
    with one:
        assert native.busy_poll(number, 10**7)


@pytest.mark.parametrize("poll_us", [1, 10**5])
def test_a_worker_answers_while_it_looks_and_after_it_has_gone_to_sleep(poll_us):
    (link,) = connect_local_worker(1, poll_us=poll_us)
    try:
        link.load_linear(1, linear())
        x = blinded()
        wanted = slow(linear(), x)
        for request in range(1, 20):
            assert (ask(link, request, x) == wanted).all()
    finally:
        link.close()
    assert link._process.returncode is not None


def test_the_option_reaches_the_process(monkeypatch):
    seen = []

    def start(arguments, **_):
        seen.append(arguments)
        raise OSError(2, "no such file")

    monkeypatch.setattr(process.subprocess, "Popen", start)
    for poll_us in (0, 7):
        with pytest.raises(WorkerUnavailable):
            connect_local_worker(1, poll_us=poll_us)
    assert "--poll-us" not in seen[0]
    assert seen[1][-2:] == ["--poll-us", "7"]


def test_the_process_looks_as_long_as_it_is_told(monkeypatch, pair):
    seen = []
    monkeypatch.setattr(shm_server.native, "busy_poll", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(serve, "end_with", lambda _: None)  # it would end the tests
    ours, theirs = pair
    ours.close()
    descriptor = theirs.detach()
    assert main(["--fd", str(descriptor), "--poll-us", "7"]) == 0
    assert seen == [(descriptor, 7)]


def start_options(monkeypatch, cores, **options):
    """The number that a session gives the worker it starts, on a machine of so many cores."""
    seen = []

    def connect(lanes, *, threads, poll_us):
        seen.append(poll_us)
        return connect_local_worker(lanes, threads=threads, poll_us=poll_us)

    monkeypatch.setattr(session_module, "connect_local_worker", connect)
    monkeypatch.setattr(session_module.os, "sched_getaffinity", lambda _: set(range(cores)))
    net = nets.chain()
    with Session(plan_of(net), **options) as session:
        assert session.run(nets.samples(net, 1)).report.bytes_to_worker > 0
    return seen


def test_a_session_lets_its_worker_look_only_where_nobody_else_needs_the_core(monkeypatch):
    assert start_options(monkeypatch, 2) == [2000]
    assert start_options(monkeypatch, 1) == [0]
    assert start_options(monkeypatch, 2, threads=2) == [0]
    assert start_options(monkeypatch, 2, worker_threads=2) == [0]
    assert start_options(monkeypatch, 8, lanes=2) == [0]
