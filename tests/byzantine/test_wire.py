"""Every lie over every transport: lies about form are errors, lies about values arrive."""

import subprocess
import sys

import numpy as np
import pytest

from cloister.errors import WorkerError, WorkerTimeout, WorkerUnavailable
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.worker.byzantine import VALUE_LIES, Lie, twist
from wire.loopback import ask, blinded, linear, slow

TRANSPORTS = ("in-process", "shm", "rpc")
FORM_LIES = {
    Lie.SHIFT_32: WorkerError,
    Lie.WRONG_DTYPE: WorkerError,
    Lie.WRONG_SHAPE: WorkerError,
    Lie.TOO_FEW_BYTES: WorkerError,
    Lie.TOO_MANY_BYTES: WorkerError,
    Lie.HUGE: WorkerError,
    Lie.STALE_ID: WorkerError,
    Lie.HANG: WorkerTimeout,
    Lie.DIE: WorkerUnavailable,
}


def test_every_lie_is_of_one_kind():
    assert VALUE_LIES.isdisjoint(FORM_LIES)
    assert set(FORM_LIES) | VALUE_LIES == set(Lie)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("lie", sorted(VALUE_LIES))
def test_lies_about_values_arrive_as_wrong_numbers(lying_link, transport, lie):
    with lying_link(transport, lie, after=2) as link:
        link.load_linear(1, linear())
        for request in (1, 2):
            x = blinded(seed=request)
            assert (ask(link, request, x) == slow(linear(), x)).all()
        x = blinded(seed=3)
        answer = ask(link, 3, x)
        assert (answer != slow(linear(), x)).any()
        if lie is Lie.STALE_CONTENT:
            assert (answer == slow(linear(), blinded(seed=2))).all()


# A process that dies takes the test along in-process, and gRPC's server runs in the test's process.
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("lie", sorted(set(FORM_LIES) - {Lie.DIE}))
def test_lies_about_form_are_refused(lying_link, transport, lie):
    with lying_link(transport, lie, after=1) as link:
        link.load_linear(1, linear())
        x = blinded()
        assert (ask(link, 1, x) == slow(linear(), x)).all()
        with pytest.raises(WorkerError) as caught:
            ask(link, 2, x, timeout_s=0.5 if lie is Lie.HANG else 30.0)
        assert type(caught.value) is FORM_LIES[lie]
        assert link.name in str(caught.value)


def test_a_local_worker_that_dies_midway(lying_link):
    with lying_link("shm", Lie.DIE, after=1) as link:
        link.load_linear(1, linear())
        ask(link, 1, blinded())
        with pytest.raises(WorkerUnavailable, match="status 9"):
            ask(link, 2, blinded())


def test_a_remote_worker_that_dies_midway():
    command = [sys.executable, "-P", "-m", "cloister.worker", "--listen", "127.0.0.1:0"]
    command += ["--lie", Lie.DIE, "--lie-after", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        link = RpcLink(process.stdout.readline().split()[-1])
        link.load_linear(1, linear())
        ask(link, 1, blinded())
        with pytest.raises(WorkerUnavailable):
            ask(link, 2, blinded(), timeout_s=30)
        link.close()
        assert process.wait(30) == 9


@pytest.mark.parametrize("lie", sorted(VALUE_LIES - {Lie.STALE_CONTENT}))
@pytest.mark.parametrize("dtype", [np.uint32, np.float32])
def test_twisted_tensors_keep_their_form_and_differ(lie, dtype):
    rng = np.random.default_rng(5)
    tensor = rng.integers(1, 2**24, (2, 5, 3, 4)).astype(dtype)
    twisted = twist(tensor, lie)
    assert (twisted.dtype, twisted.shape) == (tensor.dtype, tensor.shape)
    assert (twisted != tensor).any()


def test_plus_two_to_the_32_is_the_same_number_in_another_type():
    tensor = np.array([[5]], np.uint32)
    twisted = twist(tensor, Lie.SHIFT_32)
    assert twisted.dtype == np.int64
    assert (twisted.astype(np.uint32) == tensor).all()


def test_lies_need_their_flag_and_help_hides_it():
    command = [sys.executable, "-P", "-m", "cloister.worker", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--listen" in text
    assert "lie" not in text
