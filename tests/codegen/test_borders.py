"""What enters and leaves a module: values that are read twice, or returned as they are."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from cloister.errors import UnsupportedError
from cloister.graph.graph import BATCH, OpaqueType, TensorType
from cloister.graph.inference import with_types
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, compiled

BUILD = "native-x86-64-v3"


def agrees(graph, *arrays):
    found = Native(compiled(graph, builds=(BUILD,)), BUILD).run(*arrays)
    expected = interpret(graph, dict(zip(graph.inputs, arrays, strict=True)))
    for name, value in zip(graph.outputs, found, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def image(*shape):
    return np.random.default_rng(8).standard_normal((1, *shape)).astype(np.float32)


def test_one_value_may_leave_in_several_shapes_and_orders():
    net = nets.Net(1)
    x = net.conv(net.input("x", 3, 6, 5), 3, 4)
    flat = net.op("Flatten", x)
    turned = net.op("Transpose", x, perm=[0, 3, 1, 2])
    graph = from_model(net.model(x, flat, turned, net.op("Identity", flat)), name="net")
    agrees(graph, image(3, 6, 5))


def test_an_input_may_leave_as_it_is():
    net = nets.Net(2)
    x = net.input("x", 3, 6, 5)
    rows = net.op("Slice", x, *(net.constant(np.array([v])) for v in (1, 3, 2)))
    graph = from_model(net.model(net.op("Identity", x), rows, net.op("Relu", x)), name="net")
    agrees(graph, image(3, 6, 5))


def test_an_output_may_be_read_by_later_layers():
    net = nets.Net(3)
    x = net.op("Relu", net.conv(net.input("x", 3, 6, 5), 3, 4))
    y = net.op("Sigmoid", net.op("Flatten", x))
    z = net.gemm(y, 4 * 4 * 3, 2)
    agrees(from_model(net.model(y, z, x), name="net"), image(3, 6, 5))


def test_two_inputs_of_different_types():
    nodes = [
        helper.make_node("Gather", ["table", "row"], ["rows"]),
        helper.make_node("Add", ["rows", "x"], ["y"]),
    ]
    row = helper.make_tensor_value_info("row", TensorProto.INT32, ["N", 2])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 3])
    table = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "table")
    graph = helper.make_graph(nodes, "g", [row, x], [y], [table])
    opsets = [helper.make_opsetid("", 17)]
    made = from_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), name="g")
    agrees(made, np.array([[3, 1]], np.int32), image(2, 3))


def test_other_types_are_refused_at_the_border():
    node = helper.make_node("Relu", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N", 2])
    graph = helper.make_graph([node], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    made = from_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), name="g")
    with pytest.raises(UnsupportedError, match="float64"):
        compiled(made, builds=())


def test_sizes_that_are_not_fixed_are_refused():
    net = nets.Net(4)
    graph = from_model(net.model(net.op("Relu", net.input("x", 3, 4))), name="net")
    types = {name: known for name, known in graph.types.items() if name != "x"}
    opaque = {"x": OpaqueType(np.dtype(np.float32), (BATCH, 3, "width"))}
    with pytest.raises(UnsupportedError, match="input 'x': its sizes are not fixed"):
        compiled(replace(graph, types=types, opaque=opaque), builds=())


def test_a_value_without_the_batch_is_refused():
    net = nets.Net(5)
    graph = from_model(net.model(net.op("Relu", net.input("x", 3, 4))), name="net")
    types = {"x": TensorType(np.dtype(np.float32), (3, 4)), "v0": graph.types["v0"]}
    with pytest.raises(UnsupportedError, match="first axis has to be the batch"):
        compiled(with_types(replace(graph, types=types)), builds=())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 33])
def test_an_arena_is_never_shared_by_values_that_live_at_once(size):
    """Every earlier value is added at the end, after values of many sizes came and went."""
    net = nets.Net(size)
    x = net.input("x", size)
    values = [net.op("Tanh", x)]
    for step in range(5):
        wide = net.op("Sigmoid", net.gemm(values[-1], size, 3 * size + step))
        values.append(net.op("Tanh", net.gemm(wide, 3 * size + step, size)))
    total = values[0]
    for value in values[1:]:
        total = net.op("Add", total, value)
    agrees(from_model(net.model(total), name="net"), image(size))


@pytest.mark.parametrize("fill", [2**53 + 1, 2**63 - 1, -(2**63), -1])
def test_integers_that_padding_adds_are_exact(fill):
    """A float64 between has no 2^53 + 1; in C, -2^63 is an operation on a constant too large."""
    node = helper.make_node("Pad", ["x", "pads", "fill"], ["y"])
    value = helper.make_tensor_value_info
    constants = [
        numpy_helper.from_array(np.array([0, 1, 0, 2]), "pads"),
        numpy_helper.from_array(np.array(fill), "fill"),
    ]
    x, y = value("x", TensorProto.INT64, ["N", 2]), value("y", TensorProto.INT64, ["N", 5])
    graph = helper.make_graph([node], "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 17)]
    made = from_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), name="g")
    (found,) = Native(compiled(made, builds=(BUILD,)), BUILD).run(np.array([[3, 4]]))
    np.testing.assert_array_equal(found, [[fill, 3, 4, fill, fill]])


@pytest.mark.parametrize("before", [(), ("Conv",)])
def test_moments_of_each_pixel_are_refused(before):
    """Operator set 8 has them; taken for moments of channels, they give other numbers."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node(op, ["x", "w"], ["c"], name=op) for op in before]
    read = ["c" if before else "x", *"sbmv"]
    nodes.append(helper.make_node("BatchNormalization", read, ["y"], name="bn", spatial=0))
    moments = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    constants = [numpy_helper.from_array(moments, name) for name in "sbmv"]
    constants.append(numpy_helper.from_array(np.ones((2, 2, 1), np.float32), "w"))
    x, y = (value(name, TensorProto.FLOAT, ["N", 2, 3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 8)]
    made = from_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), name="g")
    with pytest.raises(UnsupportedError, match="has moments of each pixel"):
        compiled(made, builds=())
