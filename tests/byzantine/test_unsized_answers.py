"""Answers of a size that the worker decides: bounded before anything is allocated."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from byzantine.test_wire import FORM_LIES, TRANSPORTS
from cloister.errors import ProtocolError, WorkerError, WorkerUnavailable
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted import stages
from cloister.trusted.session import Session
from cloister.wire.messages import TensorSpec, UnsizedSpec
from cloister.worker.byzantine import Lie
from wire.loopback import KINDS, honest

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
BYTES = 4096
PLACES = UnsizedSpec(I64, (2, None), BYTES)


def places_of_the_positive():
    """The places of positive entries, and their values."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    outputs = [
        helper.make_tensor_value_info("at", TensorProto.INT64, None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("NonZero", ["y"], ["at"]),
    ]
    graph = helper.make_graph(nodes, "net", [x], outputs)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def ask(link, request_id, x, *, expect=PLACES, timeout_s=30.0):
    specs = (expect, TensorSpec(F32, x.shape))
    replies = link.exchange(request_id, 1, (x,), specs, timeout_s=timeout_s)
    found = [reply.expose_unchecked().copy() for reply in replies]
    link.release(request_id)
    return found


def rows(*values):
    return np.float32(values).reshape(-1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_link_takes_answers_of_any_size_within_the_bound(kind):
    with honest(kind) as link:
        link.load_segment(1, places_of_the_positive().SerializeToString())
        for request, x in enumerate((rows(1, -1, 2), rows(*[1] * 9), rows(-1, -1, -1)), 1):
            at, y = ask(link, request, x)
            np.testing.assert_array_equal(at, np.nonzero(x > 0))
            np.testing.assert_array_equal(y, np.maximum(x, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_beyond_the_bound_is_refused(kind):
    with honest(kind) as link:
        link.load_segment(1, places_of_the_positive().SerializeToString())
        x = rows(*[1] * 300)
        # A local worker sees how much room it has; another one learns nothing of the bound.
        error = WorkerUnavailable if kind == "shm" else WorkerError
        with pytest.raises(error, match=r"takes more memory|at most 4096 B"):
            ask(link, 1, x)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("lie", sorted(set(FORM_LIES) - {Lie.DIE}))
def test_lies_about_form_are_refused(lying_link, transport, lie):
    with lying_link(transport, lie, after=1) as link:
        link.load_segment(1, places_of_the_positive().SerializeToString())
        x = rows(1, -1, 2)
        np.testing.assert_array_equal(ask(link, 1, x)[0], [[0, 0], [0, 2]])
        with pytest.raises(WorkerError) as caught:
            ask(link, 2, x, timeout_s=0.5 if lie is Lie.HANG else 30.0)
        assert type(caught.value) is FORM_LIES[lie]


@pytest.mark.parametrize(
    ("shape", "admitted"),
    [
        ((2, 0), True), ((2, 256), True), ((2, 257), False), ((3, 1), False), ((2,), False),
        ((2, 1, 1), False), ((), False),
    ],
)  # fmt: skip
def test_what_is_admitted(shape, admitted):
    assert PLACES.admits(TensorSpec(I64, shape)) is admitted
    assert not PLACES.admits(TensorSpec(F32, shape))


def test_any_rank_is_bounded_too():
    anything = UnsizedSpec(F32, None, BYTES)
    assert anything.admits(TensorSpec(F32, ()))
    assert anything.admits(TensorSpec(F32, (1024,)))
    assert not anything.admits(TensorSpec(F32, (1025,)))
    # Beside a size of zero, another one could be more than an array can have.
    assert not anything.admits(TensorSpec(F32, (0, 2**40, 2**40)))


def session(link, model=None):
    graph = normalise.prepare(read.from_model(model or places_of_the_positive(), name="net"))
    return Session(policies.make("open", graph), workers=[link])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("lie", [Lie.HUGE, Lie.WRONG_DTYPE, Lie.WRONG_SHAPE])
def test_a_session_never_uses_a_worker_again_that_lied_about_a_size(lying_link, transport, lie):
    with lying_link(transport, lie, after=1) as link, session(link) as opened:
        x = rows(1, -1, 2)
        np.testing.assert_array_equal(opened.run(x).outputs["at"], [[0, 0], [0, 2]])
        with pytest.raises(ProtocolError):
            opened.run(x)
        with pytest.raises(WorkerUnavailable, match="no worker is left"):
            opened.run(x)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_transcript_and_the_report_have_the_sizes_that_came(lying_link, transport):
    with lying_link(transport, Lie.FLIP_ONE, after=99) as link, session(link) as opened:
        result = opened.run(rows(1, -1, 2))
    (at, y) = result.transcript.messages(direction="from_worker")
    assert (at.shape, y.shape) == ((2, 2), (1, 3))
    assert result.report.bytes_from_worker == at.nbytes + y.nbytes == 32 + 12


def test_values_of_unknown_size_share_the_bound(monkeypatch, lying_link):
    monkeypatch.setattr(stages, "UNSIZED_BYTES", 64)
    with lying_link("in-process", Lie.FLIP_ONE, after=99) as link, session(link) as opened:
        opened.run(rows(1, 1, 1, 1, -1, -1))
        with pytest.raises(ProtocolError, match=r"int64 \(2, \?\) of at most 64 B"):
            opened.run(rows(1, 1, 1, 1, 1, -1))
