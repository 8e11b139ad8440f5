"""Every linear node's geometry and weights, against ONNX Runtime on the node itself."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cloister.errors import UnsupportedError
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import float_weights, geometry, is_linear
from cloister.graph.ort_session import ORT_ERRORS
from cloister.ring.linear import Geometry
from cloister.ring.reference import taps
from nets import Net

FEW = settings(max_examples=40, deadline=None)


def naive(shape: Geometry, weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The formula of ring/linear.py in float64."""
    flat = x.reshape(len(x), -1, shape.in_channels).astype(np.float64)
    out = np.zeros((len(x), shape.out_size[0] * shape.out_size[1], shape.out_channels))
    cin, cout = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    for (i, j), outputs, inputs in taps(shape):
        for group in range(shape.groups):
            rows = slice(group * cout, (group + 1) * cout)
            part = flat[:, inputs, group * cin : (group + 1) * cin]
            out[:, outputs, rows] += np.einsum("npc,oc->npo", part, weights[rows, i, j, :])
    return (out + bias).reshape(len(x), *shape.out_shape)


def assert_linear(net: Net, value: str, x: np.ndarray) -> None:
    model = net.model(value)
    try:
        session = ort.InferenceSession(model.SerializeToString())
        wanted = session.run(None, {"x": x})[0]
    except ORT_ERRORS:  # the drawn attributes contradict each other
        assume(False)
        return
    assume(wanted.size > 0)
    graph = from_model(model, name="net")
    (node,) = graph.nodes
    assert is_linear(graph, node)
    first = node.op in ("Conv", "ConvTranspose")
    shape = geometry(graph, node)
    weights, bias = float_weights(graph, node)
    assert weights.shape == shape.weight_shape
    assert weights.dtype == bias.dtype == np.float32
    found = naive(shape, weights, bias, to_channels_last(x, channels_first=first))
    onnx_layout = from_channels_last(
        found, graph.types[node.outputs[0]].shape, channels_first=first
    )
    np.testing.assert_allclose(onnx_layout, wanted, rtol=1e-4, atol=1e-4)


def window(draw, rank: int) -> dict[str, object]:
    axis = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    attributes = {"strides": draw(axis), "dilations": draw(axis)}
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode != "NOTSET":
        attributes["auto_pad"] = mode
        if mode != "VALID":
            attributes["dilations"] = [1] * rank
    else:
        pads = st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)
        attributes["pads"] = draw(pads)
    return attributes


@FEW
@given(st.data())
def test_convolution(data):
    rank = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    cin, cout = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    size = data.draw(st.lists(st.integers(5, 9), min_size=rank, max_size=rank))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    net = Net(data.draw(st.integers(0, 99)))
    x = net.input("x", cin, *size)
    inputs = [net.weights(cout, cin // groups, *kernel)]
    if data.draw(st.booleans()):
        inputs.append(net.weights(cout))
    value = net.op("Conv", x, *inputs, group=groups, **window(data.draw, rank))
    assert_linear(net, value, net.rng.standard_normal((2, cin, *size)).astype(np.float32))


@FEW
@given(st.data())
def test_transposed_convolution(data):
    rank = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    cin, cout = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    size = data.draw(st.lists(st.integers(2, 6), min_size=rank, max_size=rank))
    kernel = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    attributes = window(data.draw, rank)
    if "pads" in attributes and data.draw(st.booleans()):
        attributes["output_padding"] = [s - 1 for s in attributes["strides"]]
    elif "pads" in attributes and data.draw(st.booleans()):
        del attributes["pads"]
        attributes["output_shape"] = [
            i * s for i, s in zip(size, attributes["strides"], strict=True)
        ]
    net = Net(data.draw(st.integers(0, 99)))
    x = net.input("x", cin, *size)
    inputs = [net.weights(cin, cout // groups, *kernel)]
    if data.draw(st.booleans()):
        inputs.append(net.weights(cout))
    value = net.op("ConvTranspose", x, *inputs, group=groups, **attributes)
    assert_linear(net, value, net.rng.standard_normal((2, cin, *size)).astype(np.float32))


@FEW
@given(
    trans=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.25]),
    bias=st.sampled_from([None, (), (1,), (4,), (1, 4), (1, 1)]),
)
def test_dense(trans, alpha, beta, bias):
    net = Net(8)
    x = net.input("x", 5)
    inputs = [net.weights(4, 5) if trans else net.weights(5, 4)]
    if bias is not None:
        inputs.append(net.constant(net.rng.standard_normal(bias).astype(np.float32)))
    value = net.op("Gemm", x, *inputs, transB=int(trans), alpha=alpha, beta=beta)
    assert_linear(net, value, net.rng.standard_normal((3, 5)).astype(np.float32))


@FEW
@given(middle=st.lists(st.integers(1, 4), max_size=3))
def test_matrix_product(middle):
    net = Net(9)
    value = net.op("MatMul", net.input("x", *middle, 5), net.weights(5, 7))
    assert_linear(net, value, net.rng.standard_normal((3, *middle, 5)).astype(np.float32))


def not_linear(net: Net, value: str) -> None:
    graph = from_model(net.model(value), name="net")
    node = graph.nodes[-1]
    assert not is_linear(graph, node)


def test_weights_that_are_computed_are_not_linear():
    net = Net()
    a, b = net.input("a", 4, 5), net.input("b", 5, 6)
    not_linear(net, net.op("MatMul", a, b))


def test_three_dimensional_convolution_is_not_linear():
    net = Net()
    not_linear(net, net.op("Conv", net.input("x", 2, 4, 4, 4), net.weights(3, 2, 2, 2, 2)))


def test_data_without_the_batch_in_front_is_not_linear():
    net = Net()
    moved = net.op("Transpose", net.input("x", 4, 5), perm=[1, 0, 2])
    not_linear(net, net.op("MatMul", moved, net.weights(5, 6)))


def test_a_bias_per_row_is_not_linear():
    net = Net()
    x = net.input("x", 5)
    rows = net.op("Reshape", x, net.constant(np.array([5, -1])))
    value = net.op("Gemm", rows, net.weights(3, 4), transA=1)
    graph = from_model(net.model(value), name="net")
    assert not is_linear(graph, graph.nodes[-1])


def test_other_nodes_have_no_geometry():
    net = Net()
    graph = from_model(net.model(net.op("Relu", net.input("x", 5))), name="net")
    with pytest.raises(UnsupportedError, match="Relu"):
        geometry(graph, graph.nodes[0])
