"""A session in a process of its own computes what a session here does, within its limits."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import nets
from cloister.errors import InputError, ProtocolError, RangeError, ServiceUnavailable
from cloister.graph import graph_file
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted import hosted_session
from cloister.trusted.hosted_session import HostedSession, HostSettings
from cloister.trusted.packed_result import unpack_result
from cloister.trusted.packed_values import pack
from cloister.trusted.sealed_memory import MemoryAllowance, SealedMemory, SharedFiles
from cloister.trusted.session import Session

ALLOWANCE = MemoryAllowance(1 << 30)


def plan_of(model, policy="slalom"):
    graph = normalise.prepare(read.from_model(model, name="net"))
    return policies.make(policy, graph, calibration=nets.samples(model, 4))


def kept(data):
    file = SealedMemory(len(data), ALLOWANCE)
    whole = memoryview(data)
    file.append(whole[: len(whole) // 2])
    file.append(whole[len(whole) // 2 :])
    return file


def hosted(plan, settings=None):
    template = None if plan.template is None else kept(graph_file.to_bytes(plan.template))
    session = HostedSession(kept(plan.to_bytes()), template, settings or HostSettings())
    session.open()
    return session


def run(session, feeds):
    return unpack_result(np.frombuffer(session.run(pack(feeds)), np.uint8),
                         appraisal=None)  # fmt: skip


@pytest.mark.parametrize("policy", ["slalom", "enclave"])
def test_a_hosted_session_gives_the_same_result(policy):
    model = nets.residual()
    plan, feeds = plan_of(model, policy), nets.samples(model, 5)
    with Session(plan, batch=2) as session:
        expected = session.run(feeds)
    process = hosted(plan, HostSettings(batch=2))
    try:
        found = run(process, feeds)
    finally:
        process.close()
    for name, value in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value)
        assert found.outputs[name].flags.writeable
    assert [row.name for row in found.report.layers] == [r.name for r in expected.report.layers]
    for name in ("inputs", "bytes_to_worker", "pads_used", "soundness_bits", "policy", "clipped"):
        assert getattr(found.report, name) == getattr(expected.report, name), name
    sizes = [(e.direction, e.dtype, e.shape, e.nbytes) for e in expected.transcript.entries]
    assert [(e.direction, e.dtype, e.shape, e.nbytes) for e in found.transcript.entries] == sizes
    assert found.report.hardware_rooted is False


def test_inputs_of_other_sizes_get_plans_of_their_own():
    plan = free_plan()
    with Session(plan) as session:
        expected = [session.run(images(size)) for size in (8, 12)]
    process = hosted(plan)
    try:
        found = [run(process, {"x": images(size)}) for size in (8, 12)]
    finally:
        process.close()
    for one, other in zip(expected, found, strict=True):
        for name, value in one.outputs.items():
            np.testing.assert_array_equal(other.outputs[name], value)
    assert found[-1].report.plans_made == 2


def images(size):
    return np.random.default_rng(size).random((2, 3, size, size), np.float32)


def free_plan():
    net = nets.Net()
    x = net.input("x", 3, "h", "w")
    y = net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 3, 4)))
    graph = normalise.prepare(read.from_model(net.model(y), name="net"))
    return policies.make("slalom", graph, calibration=images(8))


@pytest.fixture
def digits():
    plan = plan_of(nets.chain())
    process = hosted(plan)
    yield process
    process.close()


def test_errors_cross_by_class_and_the_session_goes_on(digits):
    good = nets.samples(nets.chain(), 2)
    (name,) = good
    with pytest.raises(InputError, match="inputs are"):
        run(digits, {"other": good[name]})
    with pytest.raises(RangeError, match="sample 1 contains NaN"):
        run(digits, {name: np.stack([good[name][0], np.full_like(good[name][0], np.nan)])})
    with pytest.raises(ProtocolError, match="values: cannot be read"):
        digits.run(b"no values at all")
    assert run(digits, good).report.inputs == 2


def test_bytes_that_are_no_plan_are_refused():
    with pytest.raises(InputError, match="not the bytes of a plan"):
        HostedSession(kept(b"CLOP" + bytes(99)), None, HostSettings()).open()


def test_a_session_that_wants_more_than_its_memory_ends_alone(digits):
    size = 1 << 12
    net = nets.Net()
    x = net.input("x", size)
    wide = net.op("MatMul", net.op("Unsqueeze", x, net.constant(np.array([2]))),
                  net.op("Unsqueeze", x, net.constant(np.array([1]))))  # fmt: skip
    model = net.model(net.op("ReduceMax", wide, keepdims=0))
    greedy = hosted(plan_of_one(model, size), HostSettings(memory_bytes=512 << 20))
    try:
        with pytest.raises((ServiceUnavailable, RangeError, InputError)):
            run(greedy, {"x": np.ones((64, size), np.float32)})
    finally:
        greedy.close()
    assert run(digits, nets.samples(nets.chain(), 1)).report.inputs == 1


def wide(size):
    """A plan whose output has `size` numbers for each of its inputs."""
    net = nets.Net()
    x = net.op("Unsqueeze", net.input("x", 1), net.constant(np.array([2])))
    return plan_of_one(net.model(net.op("Expand", x, net.constant(np.array([1, 1, size])))), 1)


def test_a_result_that_the_service_could_not_keep_is_refused(monkeypatch, digits):
    process = hosted(wide(hosted_session.RESULT_BYTES // 8))
    try:
        with pytest.raises(InputError, match="run fewer inputs at a time"):
            run(process, {"x": np.ones((2, 1), np.float32)})
        assert run(process, {"x": np.ones((1, 1), np.float32)}).report.inputs == 1
    finally:
        process.close()
    # A process that a plan took over says what it likes.
    monkeypatch.setattr(hosted_session, "RESULT_BYTES", 64)
    with pytest.raises(ServiceUnavailable, match="its process ended"):
        run(digits, nets.samples(nets.chain(), 1))


def plan_of_one(model, size):
    graph = normalise.prepare(read.from_model(model, name="net"))
    return policies.make("enclave", graph, calibration=np.ones((1, size), np.float32))


def test_a_call_that_takes_too_long_is_ended(monkeypatch):
    process = hosted(plan_of(nets.chain()), HostSettings(run_s=0.0))
    with pytest.raises(ServiceUnavailable, match="longer than 0 s"):
        run(process, nets.samples(nets.chain(), 64))
    with pytest.raises(ServiceUnavailable, match="its process ended"):
        run(process, nets.samples(nets.chain(), 1))
    process.close()


def test_a_call_of_a_session_that_is_closed_meanwhile_fails(digits):
    waiting = threading.Thread(target=digits.close)
    waiting.start()
    waiting.join()
    with pytest.raises(ServiceUnavailable, match="its process ended"):
        run(digits, nets.samples(nets.chain(), 1))


def test_the_processes_of_other_clients_cannot_read_its_memory(digits):
    status = Path(f"/proc/{digits.pid}/mem")
    assert status.stat().st_uid == 0  # not dumpable: the kernel keeps the file for root
    assert os.getuid() == 0 or not os.access(status, os.R_OK)


def test_equal_plans_are_kept_once_and_go_with_their_last_user():
    files, data = SharedFiles(), b"a plan" * 1000
    first, second = files.shared(kept(data)), files.shared(kept(data))
    assert first is second
    other = files.shared(kept(b"another"))
    assert other is not first
    files.release(first)
    assert first.descriptor >= 0
    files.release(second)
    assert first.descriptor < 0
    files.release(other)


def test_a_sealed_file_cannot_be_changed_or_overfilled():
    file = kept(b"abcd")
    with pytest.raises(InputError, match="more than the 4 B"):
        file.append(memoryview(b"x"))
    with pytest.raises(OSError):
        os.write(file.descriptor, b"x")
    file.close()


def test_files_take_from_what_all_may_take():
    allowance = MemoryAllowance(100)
    file, other = SealedMemory(60, allowance), SealedMemory(1 << 40, allowance)
    file.append(memoryview(bytes(60)))
    with pytest.raises(InputError, match="--plans-gib"):
        other.append(memoryview(bytes(60)))
    file.close()
    file.close()
    other.append(memoryview(bytes(100)))
    other.close()
    SealedMemory(100, allowance).append(memoryview(bytes(100)))
