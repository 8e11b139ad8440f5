import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from cloister.errors import InputError, ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.ring.linear import Geometry
from cloister.wire.codec import encode
from cloister.wire.grpc.grpc_link import METHOD, RpcLink
from cloister.wire.grpc.places import check_address
from cloister.wire.messages import Answer, Hello, Loaded, TensorSpec, Welcome
from cloister.worker.grpc_server import WorkerLimits
from cloister.worker.serve import start_server
from wire.loopback import U32, ask, blinded, expected, linear, map_bytes, slow


@pytest.fixture
def server():
    server = start_server("127.0.0.1:0", limits=WorkerLimits(max_clients=3))
    yield server
    server.close()


class Scripted(grpc.GenericRpcHandler):
    """A server whose stream is a given generator."""

    def __init__(self, stream):
        self._stream = stream

    def service(self, details):
        if details.method == METHOD:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return None


@pytest.fixture
def scripted():
    servers = []

    def start(stream):
        server = grpc.server(ThreadPoolExecutor(2), handlers=[Scripted(stream)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return RpcLink(f"127.0.0.1:{port}", timeout_s=20, load_timeout_s=20)

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:70000", "host:-1"])
def test_malformed_addresses(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        RpcLink(address)


def test_addresses():
    assert check_address("gpu.example:7700") == ("gpu.example", 7700)
    assert check_address("[::1]:7700") == ("[::1]", 7700)


def test_nobody_there():
    link = RpcLink("127.0.0.1:1", timeout_s=20)
    with pytest.raises(WorkerUnavailable, match=r"127\.0\.0\.1:1: cannot be reached.*worker"):
        link.load_linear(1, linear())
    link.close()


def test_messages_of_many_frames(server):
    geometry = Geometry((300, 400), 3, (300, 400), 3)
    link = RpcLink(server.address)
    link.load_linear(1, linear(geometry=geometry))
    x = blinded(3, geometry=geometry)
    assert x.nbytes > 4 << 20
    link.submit(1, 1, (x,), (TensorSpec(U32, x.shape),))
    (reply,) = link.receive(1, timeout_s=60)
    flat = linear(geometry=geometry).weights[:, 0, 0].astype(np.int64)
    assert (reply.expose_unchecked() == (x.astype(np.int64) @ flat.T).astype(np.uint32)).all()
    link.close()


def test_clients_have_their_own_targets(server):
    first, second = RpcLink(server.address), RpcLink(server.address)
    first.load_linear(1, linear(1))
    second.load_linear(1, linear(2))
    x = blinded()
    assert (ask(first, 1, x) == slow(linear(1), x)).all()
    assert (ask(second, 1, x) == slow(linear(2), x)).all()
    first.close()
    assert (ask(second, 2, x) == slow(linear(2), x)).all()
    second.close()


def test_too_many_clients_are_turned_away(server):
    links = [RpcLink(server.address) for _ in range(4)]
    for link in links[:3]:
        link.load_linear(1, linear())
    with pytest.raises(WorkerUnavailable, match=r"no room.*all 3 places"):
        links[3].connect()
    for link in links:
        link.close()


def test_what_a_client_loaded_goes_with_it():
    # Room for one map only: the second client can load it only once the first one's is dropped.
    messages = linear().weights.nbytes + blinded().nbytes + expected()[0].nbytes
    server = start_server("127.0.0.1:0", budget_bytes=map_bytes() + messages)
    first, second = RpcLink(server.address), RpcLink(server.address)
    first.load_linear(1, linear())
    with pytest.raises(WorkerUnavailable, match="worker memory"):
        second.load_linear(1, linear(1))
    first.close()
    for _ in range(200):
        try:
            second.load_linear(1, linear(1))
            break
        except WorkerUnavailable:
            threading.Event().wait(0.05)
    assert ask(second, 1, blinded()).any()
    second.close()
    server.close()


def test_silent_clients_are_cut():
    server = start_server("127.0.0.1:0", limits=WorkerLimits(idle_s=0.2))
    link = RpcLink(server.address)
    link.load_linear(1, linear())
    for _ in range(200):
        if link._broken is not None:
            break
        threading.Event().wait(0.05)
    with pytest.raises(WorkerUnavailable):
        ask(link, 1, blinded())
    link.close()
    server.close()


def test_a_message_over_the_limit_is_refused():
    server = start_server("127.0.0.1:0", limits=WorkerLimits(max_message_bytes=1000))
    link = RpcLink(server.address)
    link.load_linear(1, linear())
    with pytest.raises(WorkerUnavailable, match="payload"):
        ask(link, 1, blinded(20))
    link.close()
    server.close()


def test_a_port_in_use(server):
    with pytest.raises(InputError, match="cannot listen"):
        start_server(server.address)
    with pytest.raises(InputError, match="cannot listen"):
        start_server("192.0.2.1:7700")


def test_a_stopped_server_is_unavailable(server):
    link = RpcLink(server.address)
    link.load_linear(1, linear())
    server.close()
    with pytest.raises(WorkerUnavailable):
        ask(link, 1, blinded())
    link.close()


def test_the_process_serves_dies_and_is_interrupted():
    command = [sys.executable, "-P", "-m", "cloister.worker", "--listen", "127.0.0.1:0"]
    for send, status in ((signal.SIGINT, 0), (signal.SIGKILL, -9)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                serve_and_end(process, send, status)
            finally:
                process.kill()


def serve_and_end(process, send, status):
    line = process.stdout.readline()
    assert line.startswith("worker: serving on 127.0.0.1:")
    link = RpcLink(line.split()[-1])
    link.load_linear(1, linear())
    link.submit(1, 1, (blinded(),), expected())
    link.receive(1, timeout_s=30)
    os.kill(process.pid, send)
    assert process.wait(30) == status
    with pytest.raises(WorkerUnavailable):
        ask(link, 2, blinded())
    link.close()


def greeting():
    return encode(Welcome(1, "scripted", "cpu")).to_bytes()


OUT = np.zeros((2, 5, 7, 4), np.uint32)


def answer(request_id=1, tensor=OUT):
    return encode(Answer(request_id, (tensor,))).to_bytes()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"garbage" * 20],
        [answer()[:-1] + b"", greeting()],
        [answer() + b"\0"],
        [answer(2)],
        [answer(1, OUT[:1])],
        [answer(1, OUT.astype(np.float32))],
        [encode(Hello()).to_bytes()],
        [encode(Loaded(1)).to_bytes()],
        [greeting()],
        [answer()[:200], b""],
        [bytes(1 << 20)],
        [bytes((1 << 20) + 100_000)],
    ],
)
def test_whatever_else_a_worker_sends_is_refused(scripted, frames):
    def stream(requests, context):
        next(requests)
        yield greeting()
        next(requests)
        yield from frames
        list(requests)

    link = scripted(stream)
    with pytest.raises(ProtocolError):
        ask(link, 1, blinded(), timeout_s=20)
    with pytest.raises(ProtocolError):
        link.load_linear(1, linear())
    link.close()


def test_a_stream_that_ends_midway_is_unavailable(scripted):
    def stream(requests, context):
        next(requests)
        yield greeting()
        next(requests)
        yield answer()[:200]

    link = scripted(stream)
    with pytest.raises(WorkerUnavailable, match="ended the connection"):
        ask(link, 1, blinded())
    link.close()


def test_another_version_is_refused(scripted):
    def stream(requests, context):
        next(requests)
        yield encode(Welcome(9, "old", "cpu")).to_bytes()
        list(requests)

    link = scripted(stream)
    with pytest.raises(ProtocolError, match="same Cloister version"):
        link.connect()
    link.close()


def test_a_slow_worker_times_out(scripted):
    def stream(requests, context):
        next(requests)
        yield greeting()
        list(requests)

    link = scripted(stream)
    with pytest.raises(WorkerTimeout, match="no answer"):
        ask(link, 1, blinded(), timeout_s=0.1)
    link._load_timeout_s = 0.1
    with pytest.raises(WorkerTimeout, match="not loaded"):
        link.load_linear(1, linear())
    link.close()
