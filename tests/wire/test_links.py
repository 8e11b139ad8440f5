"""What every link does, whatever carries the bytes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cloister.errors import ProtocolError, WorkerUnavailable
from cloister.wire.messages import TensorSpec, Unchecked
from wire.loopback import (
    GEOMETRY,
    KINDS,
    U32,
    ask,
    blinded,
    expected,
    honest,
    linear,
    slow,
)


@pytest.fixture(scope="module", params=KINDS)
def shared(request):
    with honest(request.param) as link:
        yield link


@pytest.fixture
def link(shared):
    shared.load_linear(1, linear())
    return shared


@pytest.fixture(scope="module")
def numbers():
    return iter(range(1, 10_000))


def relu_model():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["c"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = min(model.ir_version, 10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_answers_are_the_linear_map(link, numbers):
    x = blinded(3)
    assert (ask(link, next(numbers), x) == slow(linear(), x)).all()
    plain = np.random.default_rng(3).integers(-2048, 2047, x.shape).astype(np.int16)
    assert (ask(link, next(numbers), plain) == slow(linear(), plain)).all()


def test_send_buffers_carry_requests(link, numbers):
    x = blinded(2, seed=5)
    for _ in range(3):
        buffer = link.send_buffer(TensorSpec(U32, x.shape))
        buffer[...] = x
        assert (ask(link, next(numbers), buffer) == slow(linear(), x)).all()


def test_private_arrays_may_change_after_submit(link, numbers):
    x = blinded(2, seed=6)
    private, request = x.copy(), next(numbers)
    link.submit(request, 1, (private,), expected())
    private[...] = 0
    (reply,) = link.receive(request, timeout_s=30)
    assert (reply.expose_unchecked() == slow(linear(), x)).all()
    link.release(request)


def test_several_requests_may_be_outstanding(link, numbers):
    link.load_linear(2, linear(9))
    xs = [blinded(2, seed=seed) for seed in range(4)]
    requests = [next(numbers) for _ in xs]
    for i, (request, x) in enumerate(zip(requests, xs, strict=True)):
        link.submit(request, 1 + i % 2, (x,), expected())
    for i in (2, 0, 3, 1):
        (reply,) = link.receive(requests[i], timeout_s=30)
        wanted = slow(linear(9 if i % 2 else 0), xs[i])
        assert (reply.expose_unchecked() == wanted).all()
    for request in requests:
        link.release(request)


def test_replies_are_wrapped(link, numbers):
    request = next(numbers)
    link.submit(request, 1, (blinded(),), expected())
    replies = link.receive(request, timeout_s=30)
    assert [type(reply) for reply in replies] == [Unchecked]
    link.release(request)


def test_segments_run_in_float32(link, numbers):
    link.load_segment(7, relu_model())
    a = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    spec = TensorSpec(np.dtype(np.float32), (2, 3))
    request = next(numbers)
    link.submit(request, 7, (a,), (spec, spec))
    b, c = (reply.expose_unchecked() for reply in link.receive(request, timeout_s=30))
    assert (b == np.maximum(a, 0)).all()
    assert (c == -a).all()
    link.release(request)


def test_loading_again_replaces(link, numbers):
    link.load_linear(1, linear(77))
    x = blinded()
    assert (ask(link, next(numbers), x) == slow(linear(77), x)).all()


def test_refusals_are_errors_with_the_reason(link, numbers):
    request = next(numbers)
    link.submit(request, 99, (blinded(),), expected())
    with pytest.raises(WorkerUnavailable, match="target 99 is not loaded"):
        link.receive(request, timeout_s=30)
    link.release(request)
    with pytest.raises(WorkerUnavailable, match="refuses"):
        link.load_segment(3, b"this is no model")
    request = next(numbers)
    link.submit(request, 1, (blinded(geometry=GEOMETRY)[:, :2],), expected())
    with pytest.raises(WorkerUnavailable, match="input must be"):
        link.receive(request, timeout_s=30)
    link.release(request)
    assert ask(link, next(numbers), blinded()).any()


def test_unknown_and_reused_ids_are_refused(link, numbers):
    with pytest.raises(ProtocolError, match="not outstanding"):
        link.receive(9_999_999, timeout_s=1)
    request = next(numbers)
    link.submit(request, 1, (blinded(),), expected())
    with pytest.raises(ProtocolError, match="in use"):
        link.submit(request, 1, (blinded(),), expected())
    link.receive(request, timeout_s=30)
    link.release(request)
    link.release(request)
    with pytest.raises(ProtocolError, match="not outstanding"):
        link.receive(request, timeout_s=1)


def test_a_request_may_be_released_before_its_answer(link, numbers):
    for seed in range(5):
        dropped = next(numbers)
        link.submit(dropped, 1, (blinded(seed=seed),), expected())
        link.release(dropped)
    x = blinded(seed=8)
    assert (ask(link, next(numbers), x) == slow(linear(), x)).all()


def test_bytes_are_counted(link, numbers):
    sent, received = link.bytes_sent, link.bytes_received
    x = blinded(4)
    answer = ask(link, next(numbers), x)
    assert x.nbytes < link.bytes_sent - sent < x.nbytes + 500
    assert answer.nbytes < link.bytes_received - received < answer.nbytes + 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_link_says_so(kind):
    with honest(kind) as link:
        link.load_linear(1, linear())
        link.close()
        link.close()
        with pytest.raises(WorkerUnavailable, match="closed"):
            link.submit(1, 1, (blinded(),), expected())
