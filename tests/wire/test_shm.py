import gc
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.wire.codec import encode
from cloister.wire.messages import Answer, Loaded, TensorSpec, Welcome
from cloister.wire.shm import shm_link
from cloister.wire.shm.packets import pack_answer
from cloister.wire.shm.shm_link import connect_local_worker, start_local_worker
from wire.loopback import U32, ask, blinded, expected, honest, linear, slow


@pytest.fixture(scope="module")
def link():
    with honest("shm") as link:
        link.load_linear(1, linear())
        yield link


def script(body):
    """A command that runs a scripted worker: `channel` is its socket."""
    head = "import socket, sys, time\nchannel = socket.socket(fileno=int(sys.argv[2]))\n"
    return [sys.executable, "-P", "-c", head + textwrap.dedent(body)]


def says(*messages, then="time.sleep(600)"):
    """A scripted worker that greets, then sends these packets one by one as it is spoken to."""
    packets = [pack_answer(encode(m).head) if not isinstance(m, bytes) else m for m in messages]
    return script(
        f"""
        for packet in {packets!r}:
            socket.recv_fds(channel, 1 << 20, 4)
            channel.send(packet)
        {then}
        """
    )


GREETING = Welcome(1, "scripted", "cpu")


def test_answers_lie_in_shared_memory_and_buffers_are_used_again(link):
    x = blinded(2)
    addresses = set()
    for request in range(1, 30):
        buffer = link.send_buffer(TensorSpec(U32, x.shape))
        buffer[...] = x
        link.submit(request, 1, (buffer,), expected())
        (reply,) = link.receive(request, timeout_s=30)
        answer = reply.expose_unchecked()
        assert (answer == slow(linear(), x)).all()
        addresses.add((buffer.ctypes.data, answer.ctypes.data))
        link.release(request)
    assert len(addresses) == 1


def test_dropped_buffers_come_back(link):
    addresses = {link.send_buffer(TensorSpec(U32, (1000,))).ctypes.data for _ in range(5)}
    gc.collect()
    assert len(addresses) == 1
    # An old array that dies later must not take its successor's memory along.
    old = link.send_buffer(TensorSpec(U32, (2, 5, 7, 3)))
    link.submit(901, 1, (old,), expected())
    link.receive(901, timeout_s=30)
    link.release(901)
    new = link.send_buffer(TensorSpec(U32, (2, 5, 7, 3)))
    assert new.ctypes.data == old.ctypes.data
    del old
    gc.collect()
    assert link.send_buffer(TensorSpec(U32, (2, 5, 7, 3))).ctypes.data != new.ctypes.data


def test_buffers_larger_than_a_segment(link, monkeypatch):
    monkeypatch.setattr(link._arena, "_segment_bytes", 4096)
    x = blinded(300)
    assert (ask(link, 950, x)[:3] == slow(linear(), x[:3])).all()


def test_device_is_reported(link):
    assert link.device == "cpu"
    assert str(link.pid) in link.name


def test_a_killed_worker_is_unavailable():
    with honest("shm") as link:
        link.load_linear(1, linear())
        os.kill(link.pid, signal.SIGKILL)
        with pytest.raises(WorkerUnavailable, match="ended with status -9"):
            ask(link, 1, blinded())
        with pytest.raises(WorkerUnavailable):
            link.load_linear(2, linear())


def test_a_stopped_worker_times_out_and_may_answer_later():
    with honest("shm") as link:
        link.load_linear(1, linear())
        os.kill(link.pid, signal.SIGSTOP)
        x = blinded()
        link.submit(1, 1, (x,), expected())
        with pytest.raises(WorkerTimeout, match=r"0\.05 s"):
            link.receive(1, timeout_s=0.05)
        os.kill(link.pid, signal.SIGCONT)
        (reply,) = link.receive(1, timeout_s=30)
        assert (reply.expose_unchecked() == slow(linear(), x)).all()


def test_closing_ends_the_process():
    link = start_local_worker()
    os.kill(link.pid, 0)
    link.close()
    with pytest.raises(ProcessLookupError):
        os.kill(link.pid, 0)


def test_connections_to_one_process_are_used_by_threads_and_closed_one_by_one():
    links = connect_local_worker(3)
    assert len({link.pid for link in links}) == len({link.name for link in links}) == 1
    found = {}

    def work(k):
        # The first two share a map; each names it as it likes.
        links[k].load_linear(k, linear(k // 2))
        for request in range(1, 20):
            found[k] = ask(links[k], request, blinded(seed=k), target_id=k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        assert (found[k] == slow(linear(k // 2), blinded(seed=k))).all()
    for closed in range(3):
        os.kill(links[closed].pid, 0)
        links[closed].close()
        for k in range(closed + 1, 3):
            again = ask(links[k], 100 + closed, blinded(seed=k), target_id=k)
            assert (again == found[k]).all()
    with pytest.raises(ProcessLookupError):
        os.kill(links[0].pid, 0)


def test_a_broken_protocol_on_one_connection_leaves_the_others_alone():
    broken, other = connect_local_worker(2)
    other.load_linear(1, linear())
    broken._channel.send(b"nonsense")
    with pytest.raises(WorkerUnavailable, match="closed the connection"):
        ask(broken, 1, blinded())
    assert (ask(other, 1, blinded()) == slow(linear(), blinded())).all()
    broken.close()
    other.close()


def test_a_link_that_is_cut_off_does_not_wait_any_longer():
    (link,) = connect_local_worker(1)
    link.load_linear(1, linear())
    os.kill(link.pid, signal.SIGSTOP)
    link.submit(1, 1, (blinded(),), expected())
    timer = threading.Timer(0.1, link.cut)
    timer.start()
    with pytest.raises(WorkerUnavailable, match="cut off"):
        link.receive(1, timeout_s=60)
    timer.join()
    link.close()
    link.cut()


def test_the_worker_leaves_when_its_parent_is_killed():
    parent = textwrap.dedent(
        """
        import sys, time
        from cloister.wire.shm.shm_link import connect_local_worker, start_local_worker
        print(start_local_worker().pid, flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-P", "-c", parent], stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        watch = os.pidfd_open(pid)
        process.kill()
        process.wait()
        ready, _, _ = select.select([watch], [], [], 30)
        os.close(watch)
        assert ready


@pytest.mark.parametrize("command", [["/nonexistent/worker"], [sys.executable, "-P", "-c", "pass"]])
def test_a_worker_that_does_not_start(command):
    with pytest.raises(WorkerUnavailable, match=r"cannot start|ended with status 0"):
        start_local_worker(command=command)


def test_a_worker_without_its_device_says_why():
    with pytest.raises(WorkerUnavailable, match="no-such-device"):
        start_local_worker(device="no-such-device")


def test_a_silent_worker_times_out_at_the_start():
    with pytest.raises(WorkerTimeout, match="did not start"):
        start_local_worker(command=script("time.sleep(600)"), start_timeout_s=0.3)


def test_a_worker_that_never_loads_times_out():
    command = says(GREETING)
    link = start_local_worker(command=command, load_timeout_s=0.3)
    with pytest.raises(WorkerTimeout, match="did not load"):
        link.load_linear(1, linear())
    link.close()


OUT = np.zeros((2, 5, 7, 4), np.uint32)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\2",
        b"\0" + bytes(12),
        b"\2" + b"garbage" * 9,
        pack_answer(encode(Loaded(1)).head),
        pack_answer(encode(GREETING).head),
        pack_answer(encode(Answer(2, (OUT,))).head),
        pack_answer(encode(Answer(1, ())).head),
        pack_answer(encode(Answer(1, (OUT, OUT))).head),
        pack_answer(encode(Answer(1, (OUT.view(np.int32),))).head),
        pack_answer(encode(Answer(1, (OUT[:1],))).head),
        pack_answer(encode(Answer(1, (OUT.reshape(2, 35, 4),))).head),
        pack_answer(encode(Answer(1, (OUT,))).head) + b"\0",
        pack_answer(encode(Answer(1, (OUT,))).head)[:-1],
        bytes(shm_link.MAX_PACKET_BYTES + 1),
    ],
)
def test_whatever_else_a_worker_sends_is_refused(packet):
    # Submitting makes two segments and a message: answer to the last.
    said = repr(packet) if any(packet) else f"bytes({len(packet)})"
    command = says(GREETING, then="")[-1]
    command += textwrap.dedent(
        f"""
        while socket.recv_fds(channel, 1 << 20, 4)[0][:1] != b"\\2":
            pass
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        channel.send({said})
        time.sleep({600 if packet else 0})
        """
    )
    link = start_local_worker(command=[sys.executable, "-P", "-c", command])
    link.submit(1, 1, (blinded(),), expected())
    with pytest.raises(ProtocolError):
        link.receive(1, timeout_s=30)
    # The link stays unusable.
    with pytest.raises(ProtocolError):
        link.receive(1, timeout_s=30)
    with pytest.raises(ProtocolError):
        link.submit(2, 1, (blinded(),), expected())
    link.close()


def test_a_second_answer_is_stale():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen([sys.executable, "-P", "-c", ""]) as process, theirs:
        link = shm_link.ShmLink(ours, process, name="scripted")
        link.submit(1, 1, (blinded(),), expected())
        link.submit(2, 1, (blinded(),), expected())
        for _ in range(2):
            theirs.send(pack_answer(encode(Answer(1, (OUT,))).head))
        link.receive(1, timeout_s=5)
        with pytest.raises(ProtocolError, match="not outstanding"):
            link.receive(2, timeout_s=5)
        link.close()


def test_a_worker_that_does_not_read_does_not_block_forever():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen([sys.executable, "-P", "-c", ""]) as process, theirs:
        link = shm_link.ShmLink(ours, process, name="deaf", load_timeout_s=0.1)
        with pytest.raises(WorkerTimeout, match="does not read"):
            for request in range(1, 100_000):
                link.submit(request, 1, (np.zeros(1, np.uint32),), expected(1))
        link.close()


def test_signals_do_not_make_a_link_wait_longer():
    """A system call that a signal interrupts begins again; the time that is left must not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    came = []
    before = signal.signal(signal.SIGALRM, lambda *_: came.append(len(came)))
    with subprocess.Popen([sys.executable, "-P", "-c", ""]) as process, theirs:
        link = shm_link.ShmLink(ours, process, name="deaf", load_timeout_s=0.5)
        # More often than the time allowed ends, and for longer than anybody would wait.
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            with pytest.raises(WorkerTimeout, match="does not read"):
                while True:
                    link._transmit(bytes(1000))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        link.close()
    assert came
