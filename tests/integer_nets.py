"""Models on integers: one for each operator, and small networks as ONNX Runtime quantises them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

import nets

Feeds = dict[str, np.ndarray]
MICROSOFT = "com.microsoft"
ELEMENTS = {TensorProto.FLOAT: np.float32, TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}


class Integers:
    """Builds a model of one input `x` and one output `y`, and inputs for it."""

    def __init__(self, x: int, *shape: int) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self._x, self._shape = x, shape
        self._constants: list[onnx.TensorProto] = []

    def i8(self, *shape: int) -> str:
        return self.constant(self.rng.integers(-128, 128, shape).astype(np.int8))

    def u8(self, *shape: int) -> str:
        return self.constant(self.rng.integers(0, 256, shape).astype(np.uint8))

    def i32(self, *shape: int) -> str:
        return self.constant(self.rng.integers(-20000, 20000, shape).astype(np.int32))

    def scales(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.001, 0.01, shape).astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def constant(self, array: object) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes) -> str:
        made = list(outputs or (f"v{len(self.nodes)}",))
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0]

    def model(self, kind: int, opset: int = 17) -> tuple[onnx.ModelProto, Feeds]:
        self.nodes[-1].output[0] = "y"
        inputs = [helper.make_tensor_value_info("x", self._x, ["N", *self._shape])]
        outputs = [helper.make_tensor_value_info("y", kind, None)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        x = self.rng.standard_normal((5, *self._shape)).astype(np.float32)
        if self._x != TensorProto.FLOAT:
            limits = np.iinfo(ELEMENTS[self._x])
            x = self.rng.integers(limits.min, limits.max + 1, x.shape).astype(limits.dtype)
        return model, {"x": x}


def conv_integer(weights: str = "i8", **attributes: object) -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.UINT8, 8, 9, 11)
    w = getattr(net, weights)(12, 8 // attributes.get("group", 1), 3, 3)
    zero = net.constant(np.int8(7) if weights == "i8" else np.uint8(131))
    net.op("ConvInteger", "x", w, net.constant(np.uint8(77)), zero, **attributes)
    return net.model(TensorProto.INT32)


def conv_integer_of_old() -> tuple[onnx.ModelProto, Feeds]:
    """In the first operator set that has it."""
    net = Integers(TensorProto.UINT8, 8, 9, 11)
    net.op("ConvInteger", "x", net.i8(12, 8, 3, 3), net.constant(np.uint8(5)))
    return net.model(TensorProto.INT32, opset=10)


def matmul_integer() -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.UINT8, 7, 40)
    net.op("MatMulInteger", "x", net.i8(40, 24), net.constant(np.uint8(3)), net.i8(24))
    return net.model(TensorProto.INT32)


def matmul_integer_first() -> tuple[onnx.ModelProto, Feeds]:
    """The constant is the first factor."""
    net = Integers(TensorProto.INT8, 7, 40)
    net.op("MatMulInteger", net.u8(24, 7), "x", net.constant(np.uint8(9)), net.constant(np.int8(3)))
    return net.model(TensorProto.INT32)


def qlinear_conv(
    kind: int = TensorProto.UINT8, *, asymmetric: bool = False, **attributes: object
) -> tuple[onnx.ModelProto, Feeds]:
    """Symmetric int8 weights with a scale for each channel, or asymmetric uint8 ones."""
    net = Integers(kind, 8, 9, 11)
    w = [net.i8(12, 8, 3, 3), net.scales(12), net.constant(np.zeros(12, np.int8))]
    if asymmetric:
        w = [net.u8(12, 8, 3, 3), net.scales(), net.constant(np.uint8(131))]
    zero = ELEMENTS[kind](37)
    net.op(
        "QLinearConv", "x", net.number(0.02), net.constant(zero), *w,
        net.number(0.4), net.constant(zero), net.i32(12), **attributes,
    )  # fmt: skip
    return net.model(kind)


def qlinear_matmul() -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.UINT8, 7, 40)
    net.op(
        "QLinearMatMul", "x", net.number(0.02), net.constant(np.uint8(120)), net.i8(40, 24),
        net.scales(24), net.i8(24), net.number(0.3), net.constant(np.uint8(100)),
    )  # fmt: skip
    return net.model(TensorProto.UINT8)


def qlinear_matmul_heads() -> tuple[onnx.ModelProto, Feeds]:
    """A matrix of weights for each of two heads, and scales of half precision."""
    net = Integers(TensorProto.INT8, 2, 7, 40)
    half = [net.constant(np.float16(scale)) for scale in (0.02, 0.005, 0.3)]
    zero = net.constant(np.int8(-9))
    net.op("QLinearMatMul", "x", half[0], zero, net.i8(2, 40, 24), half[1], zero, half[2], zero)
    return net.model(TensorProto.INT8, opset=21)


def qgemm(*, transposed: bool, dequantised: bool) -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.UINT8, 40)
    w = net.i8(24, 40) if transposed else net.i8(40, 24)
    after = [] if dequantised else [net.number(0.3), net.constant(np.uint8(100))]
    net.op(
        "QGemm", "x", net.number(0.02), net.constant(np.uint8(120)), w, net.scales(24),
        net.constant(np.zeros(24, np.int8)), net.i32(24), *after,
        domain=MICROSOFT, transB=int(transposed), alpha=1.3,
    )  # fmt: skip
    return net.model(TensorProto.FLOAT if dequantised else TensorProto.UINT8)


def dynamic(*, biased: bool = False) -> tuple[onnx.ModelProto, Feeds]:
    """A dense layer as `quantize_dynamic` leaves it; with a bias, its zero point has an axis."""
    net = Integers(TensorProto.FLOAT, 7, 40)
    q, zero = net.op("DynamicQuantizeLinear", "x", outputs=("q", "s", "z")), "z"
    if biased:
        zero = net.op("Reshape", zero, net.constant(np.ones(1, np.int64)))
    sums = net.op("Cast", net.op("MatMulInteger", q, net.i8(40, 24), zero, net.i8(24)), to=1)
    y = net.op("Mul", sums, net.op("Mul", "s", net.scales(24)))
    if biased:
        net.op("Add", y, net.scales(24))
    return net.model(TensorProto.FLOAT)


def matmul_to_float() -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.FLOAT, 40)
    q = net.op("DynamicQuantizeLinear", "x", outputs=("q", "s", "z"))
    w = net.i8(40, 24), "s", net.scales(24), "z", net.i8(24)
    net.op("MatMulIntegerToFloat", q, *w, domain=MICROSOFT)
    return net.model(TensorProto.FLOAT)


def dynamic_matmul() -> tuple[onnx.ModelProto, Feeds]:
    net = Integers(TensorProto.FLOAT, 40)
    w = net.i8(40, 24), net.scales(24), net.i8(24), net.scales(24)
    net.op("DynamicQuantizeMatMul", "x", *w, domain=MICROSOFT)
    return net.model(TensorProto.FLOAT)


def block_matmul(bits: int, *, zeros: bool) -> tuple[onnx.ModelProto, Feeds]:
    """80 inputs in blocks of 32: the last block is not full."""
    net = Integers(TensorProto.FLOAT, 80)
    packed = net.u8(24, 3, 32 * bits // 8), net.scales(24 * 3)
    zero = [net.u8(24 * -(-3 * bits // 8))] if zeros else []
    sizes = {"K": 80, "N": 24, "bits": bits, "block_size": 32}
    net.op("MatMulNBits", "x", *packed, *zero, domain=MICROSOFT, **sizes)
    return net.model(TensorProto.FLOAT)


EXACT: Mapping[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = {
    "conv_integer": lambda: conv_integer(pads=[1, 0, 1, 2], dilations=[2, 1]),
    "conv_integer_groups": lambda: conv_integer("u8", auto_pad="SAME_UPPER", group=4),
    "conv_integer_of_old": conv_integer_of_old,
    "matmul_integer": matmul_integer,
    "matmul_integer_first": matmul_integer_first,
    "qlinear_conv": lambda: qlinear_conv(pads=[1, 1, 1, 1], strides=[2, 1]),
    "qlinear_conv_signed": lambda: qlinear_conv(TensorProto.INT8, pads=[0, 1, 2, 1]),
    "qlinear_conv_asymmetric": lambda: qlinear_conv(asymmetric=True, auto_pad="SAME_LOWER"),
    "qlinear_matmul": qlinear_matmul,
    "qlinear_matmul_heads": qlinear_matmul_heads,
    "qgemm": lambda: qgemm(transposed=False, dequantised=False),
    "qgemm_transposed": lambda: qgemm(transposed=True, dequantised=False),
    "qgemm_dequantised": lambda: qgemm(transposed=True, dequantised=True),
    "dynamic": dynamic,
}
"""A worker's sums and what follows them give ONNX Runtime's bits."""
CLOSE: Mapping[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = {
    "dynamic_biased": lambda: dynamic(biased=True),
    "matmul_to_float": matmul_to_float,
    "dynamic_matmul": dynamic_matmul,
}
"""The sums are exact, and ONNX Runtime's fused kernel rounds what follows once less."""
BLOCKS: Mapping[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = {
    f"{bits} bits{', zeros' * zeros}": lambda bits=bits, zeros=zeros: block_matmul(
        bits, zeros=zeros
    )
    for bits in (4, 8)
    for zeros in (False, True)
}
"""Weights of several scales in each row, which have no integers of their own."""


def exact_outputs(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """What ONNX Runtime computes."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def static(
    net: str, folder: Path, *, kind: QuantFormat, per_channel: bool, weights: QuantType
) -> tuple[onnx.ModelProto, Feeds]:
    """A network of `nets` with 8-bit weights and activations, calibrated on six inputs."""
    model = nets.ALL[net]()
    feeds = nets.samples(model, 6)
    source, target = folder / "source.onnx", folder / "target.onnx"
    onnx.save(model, source)
    quantization.quantize_static(
        source,
        target,
        _Samples(feeds),
        quant_format=kind,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=weights,
    )
    return onnx.load(target), feeds


def dynamically(net: str, folder: Path) -> tuple[onnx.ModelProto, Feeds]:
    """A network of `nets` with 8-bit weights, and activations quantised for each request."""
    model = nets.ALL[net]()
    source, target = folder / "source.onnx", folder / "target.onnx"
    onnx.save(model, source)
    quantization.quantize_dynamic(source, target)
    return onnx.load(target), nets.samples(model, 6)


class _Samples(quantization.CalibrationDataReader):
    """Samples as the quantiser reads them: one dictionary for each call, then None."""

    def __init__(self, feeds: Feeds) -> None:
        ((self._name, samples),) = feeds.items()
        self._left = iter(samples)

    def get_next(self) -> Feeds | None:
        sample = next(self._left, None)
        return None if sample is None else {self._name: sample[None]}
