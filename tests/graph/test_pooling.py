"""The window a fused step takes from a pooling node means what ONNX Runtime computes."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from cloister.graph.interpreter import interpret
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.windows import pool_geometry
from cloister.graph.ort_session import ORT_ERRORS
from cloister.ring.reference import pool
from nets import Net

small = st.integers(1, 3)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from([1, 2]), st.sampled_from(["MaxPool", "AveragePool"]))
def test_window_equals_onnx_runtime(data, axes, op):
    pick = lambda values: [data.draw(values) for _ in range(axes)]  # noqa: E731
    kernel, stride, dilation = pick(small), pick(small), pick(small)
    attributes = {"kernel_shape": kernel, "strides": stride}
    if op == "MaxPool":
        attributes["dilations"] = dilation
    else:
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
        dilation = [1] * axes
    mode = data.draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode == "NOTSET":
        attributes["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = mode
    attributes["ceil_mode"] = data.draw(st.integers(0, 1))
    net = Net()
    model = net.model(net.op(op, net.input("x", 3, *pick(st.integers(7, 10))), **attributes))
    graph = from_model(model, name="pool")
    node = graph.nodes[-1]
    window = pool_geometry(graph, node)
    assume(window is not None)
    x = np.random.default_rng(0).standard_normal((2, *graph.types["x"].shape[1:]))
    x = x.astype(np.float32)
    try:
        expected = plain(model, x)
    except ORT_ERRORS:
        reject()  # some of its kernels leave no rows out
    (before,) = node.inputs
    image = interpret(graph, {"x": x}, wanted=[before])[before]
    last = np.ascontiguousarray(to_channels_last(image, channels_first=True))
    shape = graph.types[graph.outputs[0]].shape
    found = from_channels_last(pool(last, window), shape, channels_first=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def plain(model, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def test_windows_cut_off_by_the_padding_are_left_to_onnx_runtime():
    net = Net()
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    model = net.model(net.op("AveragePool", net.input("x", 3, 8, 8), count_include_pad=1,
                             **attributes))  # fmt: skip
    graph = from_model(model, name="pool")
    assert pool_geometry(graph, graph.nodes[0]) is None


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_rows_that_a_stride_beyond_the_kernel_skips_are_those_of_onnx_runtime(mode):
    net = Net()
    x = net.input("x", 3, 9, 7)
    attributes = {"kernel_shape": [1, 2], "strides": [3, 4], "dilations": [1, 2]}
    model = net.model(net.op("MaxPool", x, auto_pad=mode, **attributes))
    graph = from_model(model, name="pool")
    assert pool_geometry(graph, graph.nodes[-1]) is not None
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    (found,) = interpret(graph, {"x": x}).values()
    np.testing.assert_array_equal(found, plain(model, x))


def test_pooling_to_no_elements_is_left_to_onnx_runtime():
    net = Net()
    x = net.input("x", 2, 3, 4)
    pooled = net.op("MaxPool", x, kernel_shape=[2, 3], dilations=[1, 2], ceil_mode=1)
    graph = from_model(net.model(pooled), name="pool")
    assert graph.types[pooled].shape == (None, 2, 2, 0)
    assert pool_geometry(graph, graph.nodes[-1]) is None
