"""Models about whose sizes ONNX's shape inference and ONNX Runtime disagree.

An honest worker is believed, whatever size ONNX Runtime finds; a lying one can choose no more than
the sizes that are not known.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import nets
from byzantine.test_wire import TRANSPORTS
from cloister.errors import ProtocolError, WorkerUnavailable
from cloister.graph.certain_sizes import with_certain_sizes
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.trusted import stages
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.byzantine import Lie
from cloister.worker.engine import Engine

LARGEST = 2**63 - 1


def integers(net, *values):
    return net.constant(np.array(values, np.int64))


def backwards(net, x):
    return net.op("Slice", x, *(integers(net, i) for i in (-1, LARGEST, 1, -1)))


def power_pool(net, x):
    return net.op("LpPool", x, kernel_shape=[2], strides=[4], pads=[1, 1], ceil_mode=1)


def places(net, x):
    return net.op("NonZero", net.op("ReduceSum", x, keepdims=0))


def sloped(net, x):
    return net.op("PRelu", net.op("ReduceSum", x, keepdims=0), net.weights(1, 1, 1))


def pooled(net, x):
    pool = {"kernel_shape": [4, 3], "strides": [4, 4], "pads": [1, 2, 1, 2], "ceil_mode": 1}
    return net.op("AveragePool", x, **pool)


def unfolded(net, x):
    same = {"kernel_shape": [4, 1], "strides": [3, 4], "auto_pad": "SAME_LOWER"}
    return net.op("ConvTranspose", x, net.weights(2, 3, 4, 1), output_shape=[10, 3], **same)


def chosen(net, x):
    """The slice backwards, in both branches of an If."""
    branches = {}
    for branch, last in (("then_branch", -1), ("else_branch", -2)):
        bounds = [net.constant(np.array([i], np.int64)) for i in (-1, LARGEST, 1, last)]
        node = helper.make_node("Slice", [x, *bounds], [branch])
        info = onnx.ValueInfoProto(name=branch)
        branches[branch] = helper.make_graph([node], branch, [], [info])
    return net.op("If", net.constant(np.array(True)), **branches)


DISPUTED = {
    "a slice backwards": ((2, 3, 4), backwards, {}),
    "a pool of powers": ((1, 2, 6), power_pool, {}),
    "places in a scalar": ((1, 2, 6), places, {}),
    "a scalar's slope": ((1, 2, 6), sloped, {}),
    "a pool of an image with a free size": ((1, 2, "H", 8), pooled, {"H": 4}),
    "a transposed convolution with a free size": ((1, 2, "H", 9), unfolded, {"H": 7}),
    "a slice in a branch": ((2, 3, 4), chosen, {}),
}


def disputed(name):
    """The model, which makes another value of the disputed one, and inputs of it."""
    shape, build, free = DISPUTED[name]
    net = nets.Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    output = onnx.ValueInfoProto(name=net.op("Abs", build(net, "x")))
    graph = helper.make_graph(net.nodes, "net", net.inputs, [output], net.initializers)
    opsets = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    rng = np.random.default_rng(0)
    sizes = [free.get(size, size) for size in shape]
    return model, {"x": rng.standard_normal(sizes).astype(np.float32)}


def prepared(model):
    return normalise.prepare(read.from_model(model, name="net"))


def wanted(model, feeds):
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    return found


@pytest.mark.parametrize("name", DISPUTED)
def test_an_honest_worker_is_believed(name):
    model, feeds = disputed(name)
    link = InProcessLink(Engine().handle)
    with Session(policies.make("open", prepared(model)), workers=[link]) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted(model, feeds), rtol=1e-5)


@pytest.mark.parametrize("name", DISPUTED)
def test_a_disputed_size_is_not_certain(name):
    graph = prepared(disputed(name)[0])
    (output,) = graph.outputs
    known = with_certain_sizes(graph).sizes(output)
    assert known is None or not any(isinstance(size, int) for size in known)


@pytest.mark.parametrize("net", nets.ALL)
def test_the_sizes_of_ordinary_networks_are_certain(net):
    graph = normalise.prepare(read.from_model(nets.ALL[net](), name="net"))
    assert with_certain_sizes(graph) is graph


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("lie", [Lie.HUGE, Lie.WRONG_DTYPE, Lie.WRONG_SHAPE])
def test_a_disputed_size_is_no_licence(lying_link, transport, lie):
    model, feeds = disputed("a pool of powers")
    plan = policies.make("open", prepared(model))
    with lying_link(transport, lie, after=1) as link, Session(plan, workers=[link]) as session:
        session.run(feeds)
        with pytest.raises(ProtocolError):
            session.run(feeds)
        with pytest.raises(WorkerUnavailable, match="no worker is left"):
            session.run(feeds)


def test_a_disputed_size_is_bounded(monkeypatch):
    model, feeds = disputed("a slice backwards")
    link = InProcessLink(Engine().handle)
    monkeypatch.setattr(stages, "UNSIZED_BYTES", wanted(model, feeds).nbytes - 4)
    error = pytest.raises(ProtocolError, match=r"float32 \(\?, \?, \?\) of at most")
    with Session(policies.make("open", prepared(model)), workers=[link]) as session, error:
        session.run(feeds)


@pytest.mark.parametrize("policy", ["origami-none", "origami-prefix"])
@pytest.mark.parametrize("workers", ["shared memory", "in-process"])
def test_an_open_segment_after_a_split(policy, workers):
    net = nets.Net()
    x = net.op("Relu", net.gemm(net.input("row", 6), 6, 8))
    x = net.gemm(x, 8, 8)
    model = net.model(net.op("Exp", backwards(net, x)))
    feeds = nets.samples(model, 3)
    graph = normalise.prepare(read.from_model(model, name="net"))
    until = next(node.name for node in graph.nodes if node.op == "Relu")
    plan = policies.make(policy, graph, calibration=feeds, split=PlannedSplit((until,)))
    assert not compile_plan(plan).runtime_graph.types.keys() >= set(graph.outputs)
    links = None if workers == "shared memory" else [InProcessLink(Engine().handle)]
    with Session(plan, workers=links) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted(model, feeds), rtol=0.05)


@pytest.mark.parametrize("first", [-1, 2, -LARGEST])
@pytest.mark.parametrize(("last", "step"), [(-LARGEST, -1), (0, -1), (LARGEST, 1), (2, 2)])
def test_other_slices_have_certain_sizes(first, last, step):
    net = nets.Net()
    bounds = [integers(net, i) for i in (first, last, 1, step)]
    model = net.model(net.op("Slice", net.input("row", 6), *bounds))
    graph, feeds = prepared(model), nets.samples(model, 1)
    assert with_certain_sizes(graph) is graph
    assert graph.types[graph.outputs[0]].shape[1] == wanted(model, feeds).shape[1]


def test_a_size_that_is_certain_stays_exact():
    """Of what a disputed value has no part in, every size is the model's."""
    net = nets.Net()
    x = net.input("row", 6)
    model = net.model(net.op("Relu", x), backwards(net, x))
    graph = with_certain_sizes(prepared(model))
    assert [graph.sizes(name) for name in graph.outputs] == [("batch", 6), ("", "")]
