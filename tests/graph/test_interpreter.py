"""The interpreter on whole nets, on operators it leaves to ONNX Runtime, and on bad input."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import nets
from cloister.errors import ModelError, ShapeError, UnsupportedError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.ops.table import OPS
from nets import Net


def runtime(model, feeds):
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)


@pytest.mark.parametrize("net", nets.ALL)
def test_whole_nets_equal_onnx_runtime(net):
    model = nets.ALL[net]()
    graph, feeds = from_model(model, name=net), nets.samples(model, 3)
    found = interpret(graph, feeds)
    assert list(found) == list(graph.outputs)
    for value, expected in zip(found.values(), runtime(model, feeds), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


def test_inner_values_on_request():
    model = nets.chain()
    graph, feeds = from_model(model, name="net"), nets.samples(model, 2)
    inner = graph.nodes[0].outputs[0]
    assert interpret(graph, feeds, wanted=[inner])[inner].shape == (2, 8, 13, 10)
    with pytest.raises(ModelError, match="'nobody'"):
        interpret(graph, feeds, wanted=["nobody"])


def test_a_missing_input_is_named():
    graph = from_model(nets.chain(), name="net")
    with pytest.raises(ShapeError, match="'image'"):
        interpret(graph, {})


def test_inputs_that_do_not_fit_name_the_node():
    graph = from_model(nets.chain(), name="net")
    with pytest.raises((ModelError, ShapeError), match=graph.nodes[0].name):
        interpret(graph, {"image": np.zeros((1, 5, 13, 10), np.float32)})


@pytest.mark.parametrize(
    ("op", "attributes"), [("Softplus", {}), ("Elu", {"alpha": 0.5}), ("LRN", {"size": 3})]
)
def test_operators_outside_the_table_run_in_onnx_runtime(op, attributes):
    assert op not in OPS
    net = Net()
    model = net.model(net.op("Relu", net.op(op, net.input("x", 4, 5, 6), **attributes)))
    feeds = nets.samples(model, 2)
    found = interpret(from_model(model, name="net"), feeds)
    np.testing.assert_allclose(next(iter(found.values())), runtime(model, feeds)[0], rtol=1e-5)


def test_subgraphs_run_in_onnx_runtime():
    """An If whose branches read a value from outside."""
    net = Net()
    x = net.op("Relu", net.input("x", 4))
    condition = net.constant(np.array(True))
    branch = {
        key: helper.make_graph(
            [helper.make_node(op, [x], [f"{key}_y"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_y", TensorProto.FLOAT, None)],
        )
        for key, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    model = net.model(net.op("If", condition, **branch))
    feeds = nets.samples(model, 2)
    found = interpret(from_model(model, name="net"), feeds)
    np.testing.assert_array_equal(next(iter(found.values())), runtime(model, feeds)[0])


def test_nobody_can_run_an_unknown_operator():
    net = Net()
    y = net.op("Frobnicate", net.input("x", 4), domain="com.example")
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(net.nodes, "net", net.inputs, [output]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)],
        ir_version=9,
    )
    graph = from_model(model, name="net")
    with pytest.raises(UnsupportedError, match="Frobnicate"):
        interpret(graph, nets.samples(model, 1))


def test_feeds_and_constants_are_not_changed():
    model = nets.residual()
    graph, feeds = from_model(model, name="net"), nets.samples(model, 2)
    before = {**{k: v.copy() for k, v in feeds.items()},
              **{k: v.copy() for k, v in graph.constants.items()}}  # fmt: skip
    interpret(graph, feeds)
    for name, array in {**feeds, **graph.constants}.items():
        np.testing.assert_array_equal(array, before[name])


def only_node(build):
    net = Net()
    graph = from_model(net.model(build(net)), name="net")
    return graph, graph.nodes[-1]


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.conv(n.input("x", 4, 6, 5), 4, 2),
        lambda n: n.conv(n.input("x", 4, 6), 4, 2, (3,), group=2),
        lambda n: n.op("ConvTranspose", n.input("x", 4, 6, 5), n.weights(4, 2, 3, 3)),
        lambda n: n.gemm(n.input("x", 4), 4, 3),
        lambda n: n.op("MatMul", n.input("x", 4), n.weights(4, 3)),
        lambda n: n.op("MatMul", n.input("x", 2, 7, 4), n.weights(4, 3)),
    ],
)
def test_linear(build):
    assert is_linear(*only_node(build))


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.conv(n.input("x", 2, 4, 4, 4), 2, 2, (2, 2, 2)),
        lambda n: n.op("Conv", n.input("x", 1, 5, 5), n.input("w", 1, 3, 3)),
        lambda n: n.op("Gemm", n.input("x", 4), n.weights(4, 3), n.input("c", 3)),
        lambda n: n.op("Gemm", n.input("x", 4), n.weights(5, 3), transA=1),
        lambda n: n.op("MatMul", n.weights(3, 4), n.input("x", 4, 5)),
        lambda n: n.op("MatMul", n.input("x", 2, 3, 4), n.weights(2, 4, 3)),
        lambda n: n.op("MatMul", n.op("Transpose", n.input("x", 4, 3), perm=[1, 0, 2]),
                       n.weights(3, 2)),
        lambda n: n.op("MatMul", n.op("Reshape", n.input("x", 7, 4),
                                      n.constant(np.array([-1, 4]))), n.weights(4, 3)),
        lambda n: n.op("Relu", n.input("x", 4)),
    ],
)  # fmt: skip
def test_not_linear(build):
    """Other than two axes, weights that are not constant, or rows that are not the batch."""
    assert not is_linear(*only_node(build))
