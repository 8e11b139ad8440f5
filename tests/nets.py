"""Small networks for tests, one per structure a real model has."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Builds an ONNX model node by node; every method returns the value it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.constant(
            (self.rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        )

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(
                kind, list(inputs), [output], name=f"{kind}_{len(self.nodes)}", **attributes
            )
        )
        return output

    def conv(self, x: str, cin: int, cout: int, kernel: tuple[int, ...] = (3, 3), **attrs) -> str:
        groups = attrs.get("group", 1)
        bias = self.constant(self.rng.standard_normal(cout).astype(np.float32) / 4)
        return self.op("Conv", x, self.weights(cout, cin // groups, *kernel), bias, **attrs)

    def gemm(self, x: str, k: int, n: int) -> str:
        bias = self.constant(self.rng.standard_normal(n).astype(np.float32) / 4)
        return self.op("Gemm", x, self.weights(n, k), bias, transB=1)

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, infos, self.initializers)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def chain() -> onnx.ModelProto:
    """Convolution, relu, max pooling, convolution, average pooling, dense: not square."""
    net = Net()
    x = net.input("image", 3, 13, 10)
    x = net.op("Relu", net.conv(x, 3, 8, pads=[1, 1, 1, 1]))
    x = net.op("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])
    x = net.op("Relu", net.conv(x, 8, 17, (3, 2), strides=[1, 2]))
    x = net.op("AveragePool", x, kernel_shape=[2, 1], strides=[1, 1])
    x = net.op("Flatten", x)
    return net.model(net.gemm(x, 17 * 4 * 2, 5))


def residual() -> onnx.ModelProto:
    """Residual block with a projection, then global average pooling."""
    net = Net(1)
    x = net.op("Relu", net.conv(net.input("image", 3, 9, 12), 3, 8, pads=[1, 1, 1, 1]))
    y = net.op("Relu", net.conv(x, 8, 12, strides=[2, 2], pads=[1, 1, 1, 1]))
    y = net.conv(y, 12, 12, pads=[1, 1, 1, 1])
    shortcut = net.conv(x, 8, 12, (1, 1), strides=[2, 2])
    x = net.op("Relu", net.op("Add", y, shortcut))
    y = net.op("Relu", net.conv(x, 12, 12, pads=[1, 1, 1, 1]))
    y = net.conv(y, 12, 12, pads=[1, 1, 1, 1])
    x = net.op("Relu", net.op("Add", x, y))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.gemm(x, 12, 4))


def branches() -> onnx.ModelProto:
    """Fire module: squeeze, two expansions, concat, ceil-mode pooling."""
    net = Net(2)
    x = net.op("Relu", net.conv(net.input("image", 3, 11, 14), 3, 6, (1, 1)))
    left = net.op("Relu", net.conv(x, 6, 8, (1, 1)))
    right = net.op("Relu", net.conv(x, 6, 8, pads=[1, 1, 1, 1]))
    x = net.op("Concat", left, right, axis=1)
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    x = net.op("Relu", net.conv(x, 16, 7, (1, 1)))
    x = net.op("GlobalAveragePool", x)
    return net.model(net.op("Softmax", net.op("Flatten", x), axis=1))


def separable() -> onnx.ModelProto:
    """Depthwise and pointwise convolutions, relu6, a group convolution, a dilated one."""
    net = Net(3)
    six = [net.constant(np.float32(0)), net.constant(np.float32(6))]
    x = net.op("Clip", net.conv(net.input("image", 4, 12, 9), 4, 8, strides=[2, 1]), *six)
    x = net.op("Clip", net.conv(x, 8, 8, group=8, pads=[0, 0, 1, 1]), *six)
    y = net.conv(x, 8, 12, (1, 1))
    x = net.op("Clip", net.conv(y, 12, 12, group=3, pads=[1, 1, 1, 1]), *six)
    x = net.op("Add", net.conv(x, 12, 12, (1, 1)), y)
    x = net.conv(x, 12, 4, dilations=[1, 2], pads=[1, 2, 1, 2])
    return net.model(net.op("Flatten", net.op("GlobalMaxPool", x)))


def depthwise() -> onnx.ModelProto:
    """Depthwise convolutions: first, last, two in a row, strided, dilated, behind an add."""
    net = Net(8)
    x = net.conv(net.input("image", 6, 11, 14), 6, 6, group=6, pads=[1, 1, 1, 1])
    x = net.op("Relu", net.conv(x, 6, 20, (1, 1)))
    y = net.op("Relu", net.conv(x, 20, 20, (5, 3), group=20, strides=[2, 1], pads=[2, 0, 2, 1]))
    y = net.conv(y, 20, 20, (2, 2), group=20, dilations=[2, 1])
    y = net.op("Relu", net.conv(y, 20, 9, (1, 1)))
    z = net.op("Add", net.conv(y, 9, 9, (1, 1)), y)
    z = net.op("Clip", z, net.constant(np.float32(-1)), net.constant(np.float32(1)))
    early = net.conv(z, 9, 9, group=9, pads=[1, 1, 1, 1])
    return net.model(early, net.gemm(net.op("Flatten", net.op("GlobalAveragePool", z)), 9, 3))


def transposed() -> onnx.ModelProto:
    """An encoder and a decoder with a transposed convolution; image to image."""
    net = Net(4)
    x = net.op("Relu", net.conv(net.input("image", 2, 8, 10), 2, 6, strides=[2, 2], pads=[1] * 4))
    weights = net.weights(6, 3, 4, 3)
    x = net.op("ConvTranspose", x, weights, strides=[2, 2], pads=[1, 1, 1, 0])
    return net.model(net.op("Sigmoid", x))


def sequence() -> onnx.ModelProto:
    """Attention-like: matrix products on (N, T, K), softmax, layer normalisation."""
    net = Net(5)
    x = net.input("tokens", 7, 16)
    q, k, v = (net.op("MatMul", x, net.weights(16, 16)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    x = net.op("Add", x, net.op("MatMul", y, net.weights(16, 16)))
    scale, shift = net.constant(np.ones(16, np.float32)), net.constant(np.zeros(16, np.float32))
    x = net.op("LayerNormalization", x, scale, shift, axis=-1)
    y = net.op("Tanh", net.op("MatMul", x, net.weights(16, 32)))
    return net.model(net.op("MatMul", y, net.weights(32, 16)))


def text() -> onnx.ModelProto:
    """One-dimensional convolutions over a sequence."""
    net = Net(6)
    x = net.op("Relu", net.conv(net.input("signal", 5, 21), 5, 9, (3,), pads=[1, 1]))
    x = net.op("MaxPool", x, kernel_shape=[2], strides=[2])
    x = net.op("Relu", net.conv(x, 9, 9, (5,), strides=[2], group=3))
    return net.model(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 9, 3))


def several() -> onnx.ModelProto:
    """Two inputs, two outputs, a value read by linear and local nodes, an early output."""
    net = Net(7)
    a, b = net.input("left", 12), net.input("right", 3, 6, 5)
    x = net.op("Relu", net.conv(b, 3, 4, pads=[1, 1, 1, 1]))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    joined = net.op("Concat", net.gemm(a, 12, 6), pooled, axis=1)
    hidden = net.op("LeakyRelu", joined, alpha=0.1)
    return net.model(net.gemm(hidden, 10, 3), net.op("Sigmoid", net.gemm(joined, 10, 2)), x)


def choosing() -> onnx.ModelProto:
    """A dense layer, and bodies that read it: one with a constant, one with a body of its own."""
    net = Net(9)
    x = net.gemm(net.input("x", 6), 6, 4)
    info = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    scale = numpy_helper.from_array(np.array([1.5, -2, 0.25, 1], np.float32), "scale")
    scaled = helper.make_graph(
        [helper.make_node("Mul", [x, "scale"], ["y"])], "scaled", [], info, [scale]
    )
    inner = [
        helper.make_graph([helper.make_node(op, [x], ["y"])], op, [], info)
        for op in ("Neg", "Relu")
    ]
    flag = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.constant(np.float32(1)))
    choice = helper.make_node("If", [flag], ["y"], then_branch=inner[0], else_branch=inner[1])
    negated = helper.make_graph([choice], "chosen", [], info)
    y = net.op("If", flag, then_branch=scaled, else_branch=negated)
    return net.model(net.op("Tanh", y))


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        chain,
        residual,
        branches,
        separable,
        depthwise,
        transposed,
        sequence,
        text,
        several,
    )
}


def samples(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of a model by name."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(
            (count, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:]))
        ).astype(np.float32)
        for value in model.graph.input
    }
