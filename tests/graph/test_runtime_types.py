"""ONNX Runtime tells the types of what its own operators make."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from cloister.graph.graph import TensorType
from cloister.graph.onnx.read import from_model
from cloister.graph.runtime_types import runtime_types
from integer_nets import MICROSOFT, Integers


def added() -> Integers:
    net = Integers(TensorProto.UINT8, 4, 6)
    scale, zero = net.number(0.02), net.constant(np.uint8(7))
    net.op("QLinearAdd", *("x", scale, zero) * 2, scale, zero, domain=MICROSOFT)
    return net


def types(net: Integers) -> list[TensorType | None]:
    graph = from_model(net.model(TensorProto.UINT8)[0], name="net")
    return [graph.types.get(node.outputs[0]) for node in graph.nodes]


def test_types_behind_them_are_found_as_well():
    net = added()
    net.op("Flatten", net.nodes[-1].output[0])
    free = TensorType(np.dtype(np.uint8), (None, 4, 6))
    assert types(net) == [free, TensorType(np.dtype(np.uint8), (None, 24))]


def test_a_model_that_onnx_runtime_does_not_load_has_no_types():
    graph = from_model(added().model(TensorProto.UINT8)[0], name="net")
    assert runtime_types(graph, ["y"])["y"].dtype == np.uint8
    (node,) = graph.nodes
    other = replace(graph, nodes=(replace(node, op="NoSuchOperator"),))
    assert runtime_types(other, ["y"]) == {}


def test_half_precision_and_truth_values_have_types():
    net = Integers(TensorProto.FLOAT, 4)
    net.op("Cast", net.op("Cast", "x", to=TensorProto.FLOAT16), to=TensorProto.BOOL)
    graph = from_model(net.model(TensorProto.BOOL)[0], name="net")
    found = runtime_types(graph, [node.outputs[0] for node in graph.nodes])
    assert [one.dtype for one in found.values()] == [np.float16, np.bool_]
