"""The nodes that no worker can run in the clear, and why."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from cloister.base.tensor_limits import DTYPES, MAX_RANK
from cloister.errors import PlanError
from cloister.graph.hidden import hide
from cloister.graph.legality import MICROSOFT_DOMAIN, runs_on_worker
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.openable import kept_inside
from cloister.plan.protection import ENCLAVE, OPEN
from cloister.wire.codec import encode
from cloister.wire.messages import Answer
from nets import Net

ML = "ai.onnx.ml"


def graph_of(net, *outputs, domains=()):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(net.nodes, "net", net.inputs, infos, net.initializers)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(one, 1) for one in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return normalise.prepare(read.from_model(model, name="net"))


def in_and_out_of_a_sequence():
    net = Net()
    x = net.op("Relu", net.input("x", 4))
    split = net.op("SplitToSequence", x, net.constant(np.array(2)), axis=1)
    last = net.op("SequenceAt", split, net.constant(np.array(1)))
    return graph_of(net, net.op("Neg", last))


def test_nodes_that_touch_what_no_message_carries_stay_inside():
    graph = in_and_out_of_a_sequence()
    relu, split, at, neg = graph.nodes
    kept = kept_inside(graph)
    why = f"no message carries value {split.outputs[0]!r}"
    assert kept == {split.name: why, at.name: why}
    plan = policies.make("open", graph)
    assert plan.protections == {
        relu.name: OPEN, split.name: ENCLAVE, at.name: ENCLAVE, neg.name: OPEN,
    }  # fmt: skip
    text = str(plan.claims())
    assert "open (2 nodes)" in text
    assert "enclave (2 nodes)" in text


def test_text_and_long_shapes_stay_inside():
    net = Net()
    x = net.input("x", 4)
    named = net.op("Cast", x, to=TensorProto.STRING)
    numbers = net.op("Cast", named, to=TensorProto.FLOAT)
    shape = [-1, *[1] * (MAX_RANK - 1), 4]
    deep = net.op("Reshape", x, net.constant(np.array(shape)))
    graph = graph_of(net, numbers, net.op("Relu", deep))
    assert set(kept_inside(graph)) == {node.name for node in graph.nodes}
    assert set(policies.make("open", graph).protections.values()) == {ENCLAVE}


def test_operators_that_workers_refuse_stay_inside():
    net = Net()
    x = net.op("Relu", net.input("x", 4))
    inverse = net.op("Inverse", net.constant(np.eye(4, dtype=np.float32)), domain=MICROSOFT_DOMAIN)
    y = net.op("QuickGelu", net.op("MatMul", x, inverse), domain=MICROSOFT_DOMAIN)
    graph = graph_of(net, y, domains=[MICROSOFT_DOMAIN])
    kept = {node.op for node in graph.nodes if node.name in kept_inside(graph)}
    assert kept == {"Inverse"}
    (why,) = kept_inside(graph).values()
    assert why == "a worker runs no operator com.microsoft.Inverse"
    # ONNX knows nothing of these operators; ONNX Runtime does.
    assert graph.types[y].shape == (None, 4)


def test_a_hidden_part_has_its_own_protection():
    net = Net()
    graph = graph_of(net, net.gemm(net.op("Relu", net.input("x", 4)), 4, 3))
    hidden = hide(graph, last=1).named(bytes(32), queries=None)
    assert any(node.is_module for node in hidden.nodes)
    assert kept_inside(hidden) == {}


@pytest.mark.parametrize(
    ("domain", "op", "runs"),
    [
        ("", "Relu", True), (ML, "ZipMap", True), (MICROSOFT_DOMAIN, "FusedConv", True),
        (MICROSOFT_DOMAIN, "EPContext", False), ("other", "Relu", False),
    ],
)  # fmt: skip
def test_which_operators_a_worker_runs(domain, op, runs):
    assert runs_on_worker(domain, op) is runs


def test_the_carried_types_are_those_of_the_wire():
    for dtype in DTYPES:
        encode(Answer(1, (np.zeros((1,) * MAX_RANK, dtype),)))


def test_values_that_follow_from_hidden_ones_are_not_shown_by_a_detour():
    """The exemption is that of policies that show the inputs."""
    graph = in_and_out_of_a_sequence()
    protections = policies.make("open", graph).protections
    with pytest.raises(PlanError, match="whose answers are not checked"):
        policies.Plan(graph, "own", protections, {})


def test_a_linear_node_behind_an_operator_of_onnx_runtime_goes_out():
    net = Net()
    x = net.op("QuickGelu", net.input("x", 4), domain=MICROSOFT_DOMAIN)
    graph = graph_of(net, net.gemm(x, 4, 3), domains=[MICROSOFT_DOMAIN])
    feeds = np.ones((2, 4), np.float32)
    assert len(policies.slalom(graph, calibration=feeds).linear_nodes) == 1
