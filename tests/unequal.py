"""Small networks whose raw input channels differ in scale, with weights that make up for it."""

from collections.abc import Callable

import numpy as np
import onnx

import nets

SCALES = np.array([1e-3, 1.0, 30.0, 2e5], np.float32)


class Net(nets.Net):
    """Weights of the next layer are divided by its input channels' scales."""

    def scaled(self, *shape: int, axis: int = 1, scales: np.ndarray = SCALES) -> str:
        plain = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        sizes = [-1 if i == axis else 1 for i in range(len(shape))]
        return self.constant((plain / scales.reshape(sizes)).astype(np.float32))

    def raw(self, *shape: int) -> str:
        return self.input("x", *shape)


def table() -> onnx.ModelProto:
    """A table's columns, and a dense layer behind the first."""
    net = Net()
    bias = net.constant(net.rng.standard_normal(8).astype(np.float32) / 4)
    hidden = net.op("Relu", net.op("Gemm", net.raw(4), net.scaled(8, 4), bias, transB=1))
    return net.model(net.gemm(hidden, 8, 3))


def image() -> onnx.ModelProto:
    """A sensor's image, batch normalisation behind the convolution."""
    net = Net()
    x = net.op("Conv", net.raw(4, 7, 5), net.scaled(6, 4, 3, 2), strides=[2, 1], pads=[1, 0, 1, 1])
    shift = [net.constant(net.rng.uniform(0.5, 2, 6).astype(np.float32)) for _ in range(4)]
    x = net.op("Relu", net.op("BatchNormalization", x, *shift))
    return net.model(net.conv(x, 6, 3, (2, 2)))


def line() -> onnx.ModelProto:
    """A one-dimensional convolution."""
    net = Net()
    return net.model(net.op("Conv", net.raw(4, 11), net.scaled(5, 4, 3), dilations=[2]))


def grouped() -> onnx.ModelProto:
    """Two groups of unequal channels."""
    net = Net()
    weights = net.scaled(6, 4, 3, 3)
    array = onnx.numpy_helper.to_array(net.initializers[-1])
    halves = np.concatenate([array[:3, :2], array[3:, 2:]])
    net.initializers[-1].CopyFrom(onnx.numpy_helper.from_array(halves, weights))
    return net.model(net.op("Conv", net.raw(4, 6, 6), weights, group=2))


def depthwise() -> onnx.ModelProto:
    """One channel per group, all of them sent out: the model has no other linear node."""
    net = Net()
    weights = net.scaled(4, 1, 3, 3, axis=0)
    return net.model(net.op("Conv", net.raw(4, 6, 5), weights, group=4))


def inside() -> onnx.ModelProto:
    """A depthwise convolution that stays inside, then a pointwise one that reads its channels."""
    net = Net()
    x = net.op("Conv", net.raw(4, 6, 5), net.weights(4, 1, 3, 3), group=4, pads=[1, 1, 1, 1])
    return net.model(net.op("Conv", net.op("Relu", x), net.scaled(6, 4, 1, 1)))


def transposed() -> onnx.ModelProto:
    """A transposed convolution in two groups."""
    net = Net()
    weights = net.scaled(4, 3, 3, 2, axis=0)
    return net.model(net.op("ConvTranspose", net.raw(4, 4, 5), weights, strides=[2, 1], group=2))


def last_axis() -> onnx.ModelProto:
    """A matrix product on the last axis of three."""
    net = Net()
    x = net.op("MatMul", net.raw(6, 4), net.scaled(4, 5, axis=0))
    return net.model(net.op("Tanh", x))


def flattened() -> onnx.ModelProto:
    """Steps of a series flattened: an element has its own weights, and the columns the scales."""
    net = Net()
    flat = net.op("Flatten", net.raw(5, 4))
    return net.model(net.op("Gemm", flat, net.scaled(7, 20, scales=np.tile(SCALES, 5)), transB=1))


def pooled() -> onnx.ModelProto:
    """Pooling before the convolution."""
    net = Net()
    x = net.op("MaxPool", net.raw(4, 6, 6), kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.op("Conv", x, net.scaled(5, 4, 2, 2)))


def several() -> onnx.ModelProto:
    """Read by two convolutions with other weights, one indifferent to the scales, and a sum."""
    net = Net()
    x = net.raw(4, 6, 6)
    left = net.op("Conv", x, net.scaled(4, 4, 3, 3), pads=[1, 1, 1, 1])
    right = net.op("Conv", x, net.scaled(4, 4, 1, 1))
    plain = net.op("Conv", x, net.weights(4, 4, 1, 1))
    return net.model(net.op("Add", left, right), net.op("Add", plain, x))


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        table, image, line, grouped, depthwise, inside, transposed, last_axis, flattened, pooled,
        several,
    )
}  # fmt: skip


def samples(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs whose channels have these scales, as the model's own weights expect them."""
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    on_last = len(dims) == 1 or model.graph.node[0].op_type in ("MatMul", "Flatten")
    scales = SCALES if on_last else SCALES.reshape(4, *(1,) * (len(dims) - 1))
    # Uniform, so that other samples hardly leave the range of those for calibration.
    found = np.random.default_rng(seed).uniform(-1, 1, (count, *dims))
    return {"x": (found * scales).astype(np.float32)}
