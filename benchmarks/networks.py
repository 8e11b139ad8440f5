"""The networks that benchmarks run, built from their papers' tables.

Batch normalisation is folded away, as every deployed model has it: a convolution with a bias.
Weights are pseudorandom and scaled so that activations keep their size (He); the same in every
run and on every machine. Speed does not depend on their values; accuracy cannot be measured here.
Images are (N, 3, 224, 224), outputs 1000 classes; LeNet-5 and the MNIST CNN
take (N, 1, 28, 28) and have 10.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cloister.cli.speed import random_input
from cloister.errors import InputError
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model, load
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.splits.net_builder import uniform

OPSET, IR_VERSION = 17, 9
CLASSES = 1000
BIAS = 0.05
_SEED = hashlib.sha256(b"cloister benchmark weights").digest()


class _Net:
    """Builds a model node by node; every method returns the name of the value it makes."""

    def __init__(self, name: str, channels: int, size: int) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._channels = {"image": channels}
        shape: list[str | int | None] = ["N", channels, size, size]
        self._input = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        gain: float = 2.0,
    ) -> str:
        """Convolution with a bias; `gain` is the variance of outputs over that of inputs."""
        fan_in = self._channels[x] // groups * kernel * kernel
        shape = (channels, self._channels[x] // groups, kernel, kernel)
        weights = self._uniform(shape, math.sqrt(3 * gain / fan_in))
        y = self._add(
            "Conv",
            [x, weights, self._uniform((channels,), BIAS)],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2 if pad is None else pad] * 4,
            group=groups,
        )
        self._channels[y] = channels
        return y

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """Matrix product with a bias."""
        weights = self._uniform((outputs, inputs), math.sqrt(6 / inputs))
        y = self._add("Gemm", [x, weights, self._uniform((outputs,), BIAS)], transB=1)
        self._channels[y] = outputs
        return y

    def relu(self, x: str) -> str:
        return self._local("Relu", [x])

    def relu6(self, x: str) -> str:
        bounds = [self._constant(np.array(bound, np.float32)) for bound in (0, 6)]
        return self._local("Clip", [x, *bounds])

    def pool(self, x: str, kind: str, kernel: int, *, stride: int, pad: int = 0) -> str:
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self._local(kind, [x], **window)

    def add(self, x: str, y: str) -> str:
        return self._local("Add", [x, y])

    def flatten(self, x: str) -> str:
        return self._local("Flatten", [x])

    def average(self, x: str) -> str:
        """Mean over the image, flat."""
        return self.flatten(self._local("GlobalAveragePool", [x]))

    def channels(self, x: str) -> int:
        return self._channels[x]

    def model(self, output: str) -> onnx.ModelProto:
        classes: list[str | int | None] = ["N", self._channels[output]]
        info = helper.make_tensor_value_info(output, TensorProto.FLOAT, classes)
        graph = helper.make_graph(self._nodes, self._name, [self._input], [info], self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _local(self, op: str, inputs: list[str], **attributes: int | list[int]) -> str:
        y = self._add(op, inputs, **attributes)
        self._channels[y] = self._channels[inputs[0]]
        return y

    def _add(self, op: str, inputs: list[str], **attributes: int | list[int]) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        node = helper.make_node(op, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self._nodes.append(node)
        return name

    def _uniform(self, shape: tuple[int, ...], bound: float) -> str:
        """Weights uniform in (-bound, bound), all different streams of one generator."""
        stream = len(self._constants).to_bytes(12, "big")
        values = uniform(math.prod(shape), bound, key=_SEED, nonce=stream)
        return self._constant(values.reshape(shape))

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name


def _vgg(name: str, blocks: tuple[int, ...]) -> onnx.ModelProto:
    net = _Net(name, 3, 224)
    x = "image"
    for convolutions, channels in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        for _ in range(convolutions):
            x = net.relu(net.conv(x, channels))
        x = net.pool(x, "MaxPool", 2, stride=2)
    x = net.relu(net.dense(net.flatten(x), 512 * 7 * 7, 4096))
    x = net.relu(net.dense(x, 4096, 4096))
    return net.model(net.dense(x, 4096, CLASSES))


def _mobilenet_v1() -> onnx.ModelProto:
    net = _Net("mobilenet_v1", 3, 224)
    x = net.relu6(net.conv("image", 32, stride=2))
    for channels, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ):  # fmt: skip
        x = net.relu6(net.conv(x, net.channels(x), stride=stride, groups=net.channels(x)))
        x = net.relu6(net.conv(x, channels, 1))
    return net.model(net.dense(net.average(x), 1024, CLASSES))


def _mobilenet_v2() -> onnx.ModelProto:
    net = _Net("mobilenet_v2", 3, 224)
    x = net.relu6(net.conv("image", 32, stride=2))
    for expansion, channels, repeats, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            y, hidden = x, net.channels(x) * expansion
            if expansion > 1:
                y = net.relu6(net.conv(y, hidden, 1))
            y = net.relu6(net.conv(y, hidden, stride=stride, groups=hidden))
            shortcut = stride == 1 and net.channels(x) == channels
            y = net.conv(y, channels, 1, gain=0.3 if shortcut else 1.0)
            x = net.add(x, y) if shortcut else y
    x = net.relu6(net.conv(x, 1280, 1))
    return net.model(net.dense(net.average(x), 1280, CLASSES))


def _resnet(name: str, blocks: tuple[int, ...], *, bottleneck: bool) -> onnx.ModelProto:
    """Strides sit in the 3x3 convolutions, as all libraries have them now."""
    net = _Net(name, 3, 224)
    x = net.relu(net.conv("image", 64, 7, stride=2))
    x = net.pool(x, "MaxPool", 3, stride=2, pad=1)
    # Branches that end small keep a sum of 50 of them as large as its first term.
    last = 2.0 / sum(blocks)
    for stage, repeats in enumerate(blocks):
        width = 64 << stage
        channels = 4 * width if bottleneck else width
        for i in range(repeats):
            stride = 2 if stage and not i else 1
            if bottleneck:
                y = net.relu(net.conv(x, width, 1))
                y = net.relu(net.conv(y, width, stride=stride))
                y = net.conv(y, channels, 1, gain=last)
            else:
                y = net.relu(net.conv(x, width, stride=stride))
                y = net.conv(y, channels, gain=last)
            if stride > 1 or net.channels(x) != channels:
                x = net.conv(x, channels, 1, stride=stride, gain=1.0)
            x = net.relu(net.add(y, x))
    return net.model(net.dense(net.average(x), net.channels(x), CLASSES))


def _lenet5() -> onnx.ModelProto:
    """The layers of 1998 with today's activation, and all maps connected."""
    net = _Net("lenet5", 1, 28)
    x = net.relu(net.conv("image", 6, 5))
    x = net.pool(x, "AveragePool", 2, stride=2)
    x = net.relu(net.conv(x, 16, 5, pad=0))
    x = net.flatten(net.pool(x, "AveragePool", 2, stride=2))
    x = net.relu(net.dense(x, 400, 120))
    x = net.relu(net.dense(x, 120, 84))
    return net.model(net.dense(x, 84, 10))


def _mnist_cnn() -> onnx.ModelProto:
    """The convolutional example of Keras, without its softmax."""
    net = _Net("mnist_cnn", 1, 28)
    x = net.relu(net.conv("image", 32, pad=0))
    x = net.relu(net.conv(x, 64, pad=0))
    x = net.flatten(net.pool(x, "MaxPool", 2, stride=2))
    x = net.relu(net.dense(x, 9216, 128))
    return net.model(net.dense(x, 128, 10))


_BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "vgg16": lambda: _vgg("vgg16", (2, 2, 3, 3, 3)),
    "vgg19": lambda: _vgg("vgg19", (2, 2, 4, 4, 4)),
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "resnet18": lambda: _resnet("resnet18", (2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: _resnet("resnet50", (3, 4, 6, 3), bottleneck=True),
    "resnet152": lambda: _resnet("resnet152", (3, 8, 36, 3), bottleneck=True),
    "lenet5": _lenet5,
    "mnist_cnn": _mnist_cnn,
}
NAMES = tuple(_BUILDERS)


def build(name: str) -> onnx.ModelProto:
    """A network by its name, or the model in an .onnx file.

    Raises   ModelError, InputError
    """
    if name.endswith(".onnx"):
        return onnx.ModelProto.FromString(model_bytes(load(name)))
    if name not in _BUILDERS:
        raise InputError(
            f"no benchmark model {name!r}; choose {', '.join(NAMES)} or name an .onnx file"
        )
    return _BUILDERS[name]()


def planned(name: str, policy: str, batch: int = 1) -> tuple[Plan, np.ndarray]:
    """A network's plan, calibrated on random inputs, and the inputs."""
    graph = prepare(from_model(build(name), name=name))
    feeds = random_input(graph, batch)
    return policies.make(policy, graph, calibration=feeds), feeds
