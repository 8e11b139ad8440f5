"""Places of a worker that serves other machines, and what strangers can do with them."""

import threading
import time
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

import nets
from cloister.errors import WorkerUnavailable
from cloister.ring.linear import Geometry
from cloister.trusted.session import Session
from cloister.wire.codec import encode_head
from cloister.wire.grpc.grpc_link import METHOD, RpcLink
from cloister.wire.messages import Answer, Apply, Hello, Loaded, LoadLinear, TensorSpec, Welcome
from cloister.worker.grpc_server import Client, Server, WorkerLimits
from cloister.worker.serve import start_server
from trusted.test_session import plan_of
from wire.loopback import ask, blinded, linear, slow


@contextmanager
def serving(**options):
    server = start_server("127.0.0.1:0", **options)
    links = []

    def connect(*, load=False):
        link = RpcLink(server.address, timeout_s=20)
        links.append(link)
        link.load_linear(1, linear()) if load else link.connect()
        return link

    yield connect
    for link in links:
        link.close()
    server.close()


def alive(link):
    try:
        link.load_linear(9, linear())
    except WorkerUnavailable:
        return False
    return True


def ends(link, *, within_s=30.0):
    """Wait until the other side cuts a link."""
    deadline = time.monotonic() + within_s
    while link._broken is None:
        assert time.monotonic() < deadline, "it is still served"
        threading.Event().wait(0.02)
    return True


def test_silent_clients_lock_nobody_out():
    with serving() as connect:
        silent = [connect() for _ in range(8)]
        for n in range(20):
            link = connect(load=True)
            x = blinded(seed=n)
            assert (ask(link, 1, x) == slow(linear(), x)).all()
            link.close()
        assert sum(link._broken is None for link in silent) <= 8


def test_the_longest_silent_makes_room_first_and_those_at_work_stay():
    with serving(limits=WorkerLimits(max_clients=3)) as connect:
        worker, older, newer = connect(load=True), connect(), connect()
        fourth = connect()
        assert ends(older)
        fifth = connect(load=True)
        assert ends(newer)
        assert alive(fourth)
        # Now all have loaded something, and spoken within the last minute.
        with pytest.raises(WorkerUnavailable, match=r"no room.*all 3 places are taken"):
            connect()
        x = blinded()
        for link in (worker, fourth, fifth):
            link.load_linear(1, linear())
            assert (ask(link, 1, x) == slow(linear(), x)).all()


def test_a_client_that_worked_and_fell_silent_makes_room():
    with serving(limits=WorkerLimits(max_clients=2, yield_s=0.0)) as connect:
        first, second = connect(load=True), connect(load=True)
        x = blinded()
        assert (ask(first, 1, x) == slow(linear(), x)).all()
        third = connect(load=True)
        assert ends(second)
        assert alive(first)
        assert alive(third)


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_open_plan_runs_in_the_processes_of_its_connections(lanes):
    net = nets.chain()
    plan, feeds = plan_of(net, "open"), nets.samples(net, 4)
    with serving() as connect, Session(plan) as local:
        wanted = local.run(feeds).outputs
        address = connect().name
        with Session(plan, workers=[address], lanes=lanes, batch=1) as remote:
            found = remote.run(feeds).outputs
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_who_does_not_begin_is_cut_soon_and_who_did_is_not():
    with serving(limits=WorkerLimits(first_s=0.5)) as connect:
        idle, worker = connect(), connect(load=True)
        assert ends(idle)
        assert alive(worker)


def test_memory_that_is_only_announced_is_counted(monkeypatch):
    claimed = TensorSpec(np.dtype(np.int16), (1 << 28, 1, 1, 1))
    geometry = Geometry((1, 1), 1, (1, 1), 1 << 28)
    head = encode_head(LoadLinear, (1, geometry.to_bytes()), (claimed,))
    with serving(budget_bytes=1 << 20) as connect:
        address = connect(load=True).name
        with grpc.insecure_channel(address) as channel:
            done = threading.Event()

            def frames():
                yield encode_head(Hello, (1,), ())
                yield head
                done.wait(30)

            call = channel.stream_stream(METHOD)(frames())
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            done.set()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "worker memory" in caught.value.details()
        # What was announced is free again.
        link = connect(load=True)
        x = blinded()
        assert (ask(link, 1, x) == slow(linear(), x)).all()


class Slow:
    """A client's handler that computes until it is told to stop."""

    def __init__(self):
        self.begun, self.stop, self.cuts = threading.Event(), threading.Event(), []

    def client(self):
        return Client(self.handle, close=lambda: None, cut=lambda: self.cuts.append(1))

    def handle(self, message):
        if isinstance(message, Hello):
            return Welcome(1, "slow", "cpu")
        if isinstance(message, LoadLinear):
            return Loaded(message.target_id)
        if isinstance(message, Apply):
            self.begun.set()
            self.stop.wait(60)
            return Answer(message.request_id, (slow(linear(), message.tensors[0]),))
        return None


@pytest.fixture
def computing():
    work = Slow()
    server = Server(
        "127.0.0.1:0", new_client=work.client, limits=WorkerLimits(max_clients=1, yield_s=0.0)
    )
    link = RpcLink(server.address, timeout_s=20)
    link.load_linear(1, linear())
    x = blinded()
    expect = TensorSpec(np.dtype(np.uint32), (2, 5, 7, 4))
    link.submit(1, 1, (x,), (expect,))
    assert work.begun.wait(30)
    yield work, server, link
    work.stop.set()
    link.close()
    server.close()


def test_a_client_whose_request_is_computed_is_not_silent(computing):
    work, server, link = computing
    other = RpcLink(server.address, timeout_s=20)
    with pytest.raises(WorkerUnavailable, match="no room"):
        other.connect()
    other.close()
    work.stop.set()
    (reply,) = link.receive(1, timeout_s=30)
    assert (reply.expose_unchecked() == slow(linear(), blinded())).all()


def test_what_computes_for_a_client_hears_that_it_is_gone(computing):
    work, _, link = computing
    assert not work.cuts
    link.close()
    deadline = time.monotonic() + 30
    while not work.cuts:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
