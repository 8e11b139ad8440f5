"""Products of integers become linear nodes over float32 values that hold these integers."""

import numpy as np
import pytest
from onnx import TensorProto

import integer_nets
from cloister.graph.graph import Graph
from cloister.graph.grid import Grid, grid_of
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.passes.normalise import prepare
from integer_nets import Integers

OTHERS = ("DynamicQuantizeLinear", "Cast", "Mul", "Add", "Reshape")
NETS = {**integer_nets.EXACT, **integer_nets.CLOSE, **integer_nets.BLOCKS}


def linear(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if is_linear(graph, node)]


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_each_product_becomes_a_linear_node_of_its_name(build):
    model, feeds = build()
    graph = prepare(from_model(model, name="net"))
    product = next(node.name for node in model.graph.node if node.op_type not in OTHERS)
    assert linear(graph) == [product]
    found = interpret(graph, feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_preparing_twice_changes_nothing_more(build):
    once = prepare(from_model(build()[0], name="net"))
    twice = prepare(once)
    assert [node.op for node in twice.nodes] == [node.op for node in once.nodes]


def test_sums_that_float32_may_round_stay_integers():
    """127 * 255 * 1024 reaches beyond 2^24."""
    net = Integers(TensorProto.UINT8, 1024)
    net.op("MatMulInteger", "x", net.constant(np.full((1024, 3), 127, np.int8)))
    graph = prepare(from_model(net.model(TensorProto.INT32)[0], name="net"))
    assert [node.op for node in graph.nodes] == ["MatMulInteger"]


def test_sums_of_any_size_go_out_where_they_are_read_as_float32():
    net = Integers(TensorProto.UINT8, 1024)
    sums = net.op("MatMulInteger", "x", net.constant(np.full((1024, 3), 127, np.int8)))
    net.op("Sigmoid", net.op("Cast", sums, to=TensorProto.FLOAT))
    graph = prepare(from_model(net.model(TensorProto.FLOAT)[0], name="net"))
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul", "Sigmoid"]


def test_weights_that_are_computed_stay_integers():
    net = Integers(TensorProto.UINT8, 40)
    net.op("MatMulInteger", "x", net.op("Transpose", "x", perm=[1, 0]))
    graph = prepare(from_model(net.model(TensorProto.INT32)[0], name="net"))
    assert [node.op for node in graph.nodes] == ["Transpose", "MatMulInteger"]


def test_two_products_share_the_value_that_they_read():
    net = Integers(TensorProto.UINT8, 40)
    zero = net.constant(np.uint8(9))
    parts = [net.op("MatMulInteger", "x", net.i8(40, 24), zero) for _ in range(2)]
    net.op("Add", *parts)
    graph = prepare(from_model(net.model(TensorProto.INT32)[0], name="net"))
    assert [node.op for node in graph.nodes].count("DequantizeLinear") == 1
    assert len(linear(graph)) == 2


def test_scales_are_not_multiplied_into_weights_that_are_integers():
    net = Integers(TensorProto.UINT8, 40)
    sums = net.op("MatMulInteger", "x", net.i8(40, 24))
    net.op("Mul", net.op("Cast", sums, to=TensorProto.FLOAT), net.scales(24))
    graph = prepare(from_model(net.model(TensorProto.FLOAT)[0], name="net"))
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul", "Mul"]
    weights = graph.constants[graph.nodes[1].inputs[1]]
    np.testing.assert_array_equal(weights, np.rint(weights))


# ---- grids


def dequantised(*after: str, step: object = np.float32(0.5), kind: str = "i8", **attributes):
    """The grid behind a DequantizeLinear and other operators."""
    net = Integers({"i8": TensorProto.INT8, "u8": TensorProto.UINT8}[kind], 4, 6, 6)
    zero = {"i8": np.int8(3), "u8": np.uint8(3)}[kind]
    value = net.op("DequantizeLinear", "x", net.constant(step), net.constant(zero))
    for op in after:
        value = net.op(op, value, **attributes)
    graph = from_model(net.model(TensorProto.FLOAT)[0], name="net")
    return grid_of(graph, "y")


def test_a_dequantised_value_reaches_as_far_as_its_type():
    assert dequantised() == Grid(0.5, 131)
    assert dequantised(kind="u8") == Grid(0.5, 252)


def test_moving_elements_keeps_the_grid():
    assert dequantised("Relu", "Flatten") == Grid(0.5, 131)
    assert dequantised("MaxPool", kernel_shape=[2, 2]) == Grid(0.5, 131)


def test_arithmetic_leaves_the_grid():
    assert dequantised("Sigmoid") is None
    assert dequantised("AveragePool", kernel_shape=[2, 2]) is None


@pytest.mark.parametrize("step", [0.0, -0.5, np.inf, np.nan, 1e-45])
def test_a_step_that_has_no_inverse_makes_no_grid(step):
    assert dequantised(step=np.float32(step)) is None


def joined(step: float) -> Grid | None:
    net = Integers(TensorProto.INT8, 4)
    zeros = net.constant(np.int8(0)), net.constant(np.int8(9))
    parts = [
        net.op("DequantizeLinear", "x", net.number(one), zero)
        for one, zero in zip((0.5, step), zeros, strict=True)
    ]
    net.op("Concat", *parts, axis=1)
    return grid_of(from_model(net.model(TensorProto.FLOAT)[0], name="net"), "y")


def test_a_concatenation_has_the_grid_of_all_its_parts():
    assert joined(0.5) == Grid(0.5, 137)
    assert joined(0.25) is None


def test_several_steps_make_no_grid():
    net = Integers(TensorProto.INT8, 4)
    net.op("DequantizeLinear", "x", net.scales(4), axis=1)
    assert grid_of(from_model(net.model(TensorProto.FLOAT)[0], name="net"), "y") is None
