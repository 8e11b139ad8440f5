"""Values that carry no batch beside values that do: every policy, link and number of lanes."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from cloister.graph.onnx import read
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from cloister.worker.serve import start_server
from nets import Net

POLICIES = ("enclave", "open", "slalom", "verified", "blinded")
SAMPLES = 7
SHAPES = {
    "x": ("N", 3, 4),
    "gain": (),
    "one": (1,),
    "mask": (1, 3, 4),
    "row": (4,),
    "state": (2, "N", 4),
    "table": (6, 4),
    "place": (),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def given(order):
    """The inputs, some with the batch and some without, as (net, feeds)."""
    net, feeds = Net(), {}
    for seed, name in enumerate(order):
        shape = SHAPES[name]
        kind = TensorProto.INT64 if name == "place" else TensorProto.FLOAT
        net.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        sizes = [SAMPLES if size == "N" else size for size in shape]
        feeds[name] = np.array(4) if name == "place" else normal(*sizes, seed=seed)
    return net, feeds


def both(net, op, value, other, first):
    """An operation with a value that carries the batch as first or second operand."""
    return net.op(op, *((value, other) if first else (other, value)))


def model_of(order, first):
    net, feeds = given(order)
    weights = net.weights(4, 4)
    hidden = net.op("MatMul", both(net, "Mul", "x", "gain", first), weights)
    for other in ("mask", "row", "one", net.constant(normal(3, 1))):
        hidden = both(net, "Sub", hidden, other, first)
    picked = net.op("Gather", "table", "place", axis=0)
    hidden = both(net, "Add", net.op("Relu", hidden), picked, first)
    looked = net.op("Gather", "table", net.op("ArgMax", hidden, axis=2, keepdims=0), axis=0)
    condition = both(net, "Greater", hidden, "one", first)
    hidden = net.op("Where", condition, hidden, "mask")
    joined = net.op("MatMul", net.op("Add", hidden, looked), net.weights(4, 2))
    state = both(net, "Add", "state", "row", first)
    later = net.op("MatMul", net.op("Transpose", state, perm=[1, 0, 2]), weights)
    outside = net.op("MatMul", "table", weights)
    model = net.model(joined, state, later, outside, picked, "gain", "x")
    return model, feeds


def plain(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def assert_right(plan, model, feeds, **arguments):
    with Session(plan, **arguments) as session:
        result = session.run(feeds)
    assert result.report.inputs == SAMPLES
    wanted = plain(model, feeds)
    for (name, found), right in zip(result.outputs.items(), wanted, strict=True):
        assert (found.shape, found.dtype) == (right.shape, right.dtype), name
        np.testing.assert_allclose(found, right, atol=0.05, err_msg=name)


ORDERS = [tuple(SHAPES), tuple(reversed(SHAPES))]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("order", ORDERS, ids=["batch_first", "batch_last"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_position_and_policy(policy, order, first):
    model, feeds = model_of(order, first)
    graph = prepare(read.from_model(model, name="net"))
    assert graph.separable
    plan = policies.make(policy, graph, calibration=feeds)
    for batch in (3, 1, 8):
        links = [InProcessLink(Engine().handle)]
        assert_right(plan, model, feeds, workers=links, batch=batch)


@pytest.mark.parametrize("policy", ["open", "slalom", "verified", "blinded"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_over_shared_memory_and_grpc(policy, lanes):
    model, feeds = model_of(ORDERS[1], True)
    plan = policies.make(policy, prepare(read.from_model(model, name="net")), calibration=feeds)
    assert_right(plan, model, feeds, batch=3, lanes=lanes)
    server = start_server("127.0.0.1:0")
    try:
        assert_right(plan, model, feeds, workers=[server.address], batch=3, lanes=lanes)
    finally:
        server.close()
