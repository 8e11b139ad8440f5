"""The pass that turns products of small integers into products of float32 values that hold them.

    x - zero           DequantizeLinear with step 1
    w - zero           a constant
    their sums         Conv, Gemm or MatMul; exact while they are below 2^24
    what follows       nodes that do what ONNX Runtime's kernel does, in its order

A linear node over these values has integers of its own (graph/grid.py), so a worker computes the
sums exactly. Nodes whose weights are not constants stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from cloister.graph.graph import MICROSOFT, Graph, Node
from cloister.graph.grid import LIMITS, reach
from cloister.graph.ops.call import NotCovered
from cloister.graph.ops.linear_nodes import integer, number
from cloister.graph.passes.padding import with_explicit_padding
from cloister.graph.passes.rewrite import Rewrite

EXACT = 2**24
"""Integers up to this magnitude are float32 values."""
OPSET, DYNAMIC_OPSET = 10, 11
"""The first that have DequantizeLinear and DynamicQuantizeLinear."""


def integer_products(graph: Graph) -> Graph:
    """Products of integers with constant weights as linear nodes over float32 values."""
    if graph.opset < OPSET:
        return graph
    rewrite = Rewrite(graph)
    centred: dict[tuple[str, str], str] = {}
    for node in graph.nodes:
        form = FORMS.get((node.domain, node.op))
        if form is None:
            continue
        product = _Product(rewrite, node, centred)
        try:
            form(product)
        except NotCovered:
            continue
        rewrite.swap([node], product.nodes)
        centred.update(product.centred_here)
    return with_explicit_padding(rewrite.finish())


class _Product:
    """One node, its constants, and the nodes that take its place.

    `centred` has what earlier nodes made of an integer value and its zero point.
    """

    def __init__(
        self, rewrite: Rewrite, node: Node, centred: Mapping[tuple[str, str], str]
    ) -> None:
        self.node = node
        self.opset = rewrite.graph.opset
        self.nodes: list[Node] = []
        self.centred_here: dict[tuple[str, str], str] = {}
        self._rewrite = rewrite
        self._graph = rewrite.graph
        self._centred = centred

    # ---- what the node reads

    def given(self, i: int) -> str:
        """The name of an input; empty where it is absent."""
        return self.node.inputs[i] if i < len(self.node.inputs) else ""

    def is_constant(self, i: int) -> bool:
        """Whether an input is a constant."""
        return self.given(i) in self._graph.constants

    def optional(self, i: int) -> np.ndarray | None:
        """A constant input; None where it is absent."""
        name = self.given(i)
        if name and name not in self._graph.constants:
            raise NotCovered(f"input {i} is no constant")
        return self._graph.constants[name] if name else None

    def array(self, i: int) -> np.ndarray:
        """A constant input that is there."""
        found = self.optional(i)
        if found is None:
            raise NotCovered(f"input {i} is absent")
        return found

    def scales(self, i: int) -> np.ndarray:
        """A constant scale, or one for each output channel, in float32."""
        found = self.array(i)
        if found.dtype not in (np.float32, np.float16) or (found.ndim > 1 and found.size > 1):
            raise NotCovered(f"input {i} is no row of scales that float32 holds")
        return found.reshape(-1 if found.size > 1 else ()).astype(np.float32)

    def weights(self, i: int, *, zero: int, axis: int) -> np.ndarray:
        """Constant weights less their zero point, or that of each entry of an axis."""
        found, zeros = self.array(i), self.optional(zero)
        if found.dtype.name not in LIMITS:
            raise NotCovered(f"input {i} holds no small integers")
        wide = found.astype(np.float32)
        return wide if zeros is None else wide - _along(zeros.astype(np.float32), wide.ndim, axis)

    def reach(self, i: int, *, zero: int) -> int:
        """Largest magnitude of an integer input less its zero point."""
        known = self._graph.types.get(self.given(i))
        most = None if known is None else reach(known.dtype, self._zero(zero))
        if most is None:
            raise NotCovered(f"input {i} is of no known small type")
        return most

    def _zero(self, i: int) -> np.ndarray | None:
        """A zero point; None where it is computed."""
        name = self.given(i)
        return self._graph.constants.get(name) if name else np.zeros(1, np.int64)

    # ---- what takes its place

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        name: str = "",
        attributes: Mapping[str, object] | None = None,
    ) -> str:
        """A node; its output."""
        name = name or self.value(op)
        output = output or self.value("result")
        self.place(Node(name, op, tuple(inputs), (output,), attributes or {}))
        return output

    def place(self, node: Node) -> None:
        """Put in a node."""
        self.nodes.append(node)

    def value(self, what: str) -> str:
        """A name that no node or value has."""
        return self._rewrite.name(f"{self.node.name}_{what}")

    def constant(self, what: str, array: np.ndarray) -> str:
        """A constant; its name."""
        return self._rewrite.constant(f"{self.node.name}_{what}", array)

    def centred(self, i: int, *, zero: int) -> str:
        """An integer input less its zero point, in float32."""
        self.reach(i, zero=zero)
        key = self.given(i), self.given(zero)
        found = self._centred.get(key)
        if found is None:
            found = self._dequantised(*key, self._zero(zero))
            self.centred_here[key] = found
        return found

    def _dequantised(self, value: str, zero: str, constant: np.ndarray | None) -> str:
        if constant is None:
            zero = self._scalar(zero)
        elif constant.size != 1:
            raise NotCovered("several zero points of the input")
        elif zero:
            zero = self.constant("zero", constant.reshape(()))
        return self.less(value, zero)

    def _scalar(self, value: str) -> str:
        """A computed value of one element, without axes."""
        known = self._graph.types.get(value)
        if known is None or known.shape not in ((), (1,)):
            raise NotCovered("a zero point that is computed and of no known size")
        if not known.shape:
            return value
        return self.add("Reshape", (value, self.constant("scalar", np.zeros(0, np.int64))))

    def less(self, value: str, zero: str) -> str:
        """An integer value less a zero point, in float32; without one if its name is empty."""
        one = self.constant("step", np.ones((), np.float32))
        return self.add("DequantizeLinear", (value, one, zero) if zero else (value, one))

    def linear(
        self,
        op: str,
        x: str,
        weights: np.ndarray,
        *,
        first: bool = False,
        bias: np.ndarray | None = None,
        output: str = "",
        attributes: Mapping[str, object] | None = None,
    ) -> str:
        """The linear node, which has the name of the whole; its output."""
        factors = x, self.constant("weights", weights)
        inputs = [*(reversed(factors) if first else factors)]
        if bias is not None:
            inputs.append(self.constant("bias", bias.astype(np.float32)))
        return self.add(op, inputs, name=self.node.name, output=output, attributes=attributes)

    def requantised(self, sums: str, scales: np.ndarray, *, zero: int) -> None:
        """Sums times scales as integers again, the node's output: rounded half to even."""
        zeros = self.array(zero)
        if zeros.size != 1:
            raise NotCovered("several zero points of the output")
        scaled = self.scaled(sums, scales)
        one = self.constant("one", np.ones((), np.float32))
        zero_point = self.constant("y_zero", zeros.reshape(()))
        self.add("QuantizeLinear", (scaled, one, zero_point), output=self.node.outputs[0])

    def scaled(self, sums: str, scales: np.ndarray, *, output: str = "") -> str:
        """Sums times constant scales.

        Floor changes no integer. Without it ONNX Runtime would multiply the weights by the scales,
        and round every product.
        """
        whole = self.add("Floor", (sums,))
        return self.add("Mul", (whole, self.constant("scales", scales)), output=output)

    def integers(self, op: str, factors: "_Factors") -> None:
        """Sums as the int32 values that the node makes, or as float32 if only that is read."""
        sums = np.abs(factors.weights).sum(axis=factors.summed)
        most = self.reach(factors.x, zero=factors.zero) * int(sums.max(initial=0))
        value = self.node.outputs[0]
        as_float = self._only_as_float(value)
        if most > EXACT and not as_float:
            raise NotCovered("sums that float32 may round, and that are read as integers")
        found = self.linear(
            op,
            self.centred(factors.x, zero=factors.zero),
            factors.weights,
            first=factors.first,
            output=value if as_float else "",
            attributes=self.node.attributes,
        )
        if not as_float:
            self.add("Cast", (found,), output=value, attributes={"to": TensorProto.INT32})

    def _only_as_float(self, value: str) -> bool:
        """Whether all that reads a value takes it for float32."""
        graph = self._graph
        readers = [node for node in graph.nodes if value in node.inputs]
        kept = value in graph.outputs or value in self._rewrite.captured
        return not kept and all(
            node.op == "Cast" and node.attributes.get("to") == TensorProto.FLOAT for node in readers
        )


class _Factors(NamedTuple):
    """The computed input of a product and its zero point, by number; the weights less theirs.

    `summed` are the axes of the weights over which sums are taken; `first`: they come first.
    """

    x: int
    zero: int
    weights: np.ndarray
    summed: tuple[int, ...]
    first: bool = False


def _matrices(p: _Product, a: int, b: int, *, a_zero: int, b_zero: int) -> _Factors:
    """The factors of a matrix product, of which either may be the constant."""
    if p.is_constant(a):
        return _Factors(b, b_zero, p.weights(a, zero=a_zero, axis=-2), (-1,), first=True)
    weights = p.weights(b, zero=b_zero, axis=-1)
    return _Factors(a, a_zero, weights, (max(-2, -weights.ndim),))


def _conv_integer(p: _Product) -> None:
    weights = p.weights(1, zero=3, axis=0)
    p.integers("Conv", _Factors(0, 2, weights, tuple(range(1, weights.ndim))))


def _matmul_integer(p: _Product) -> None:
    p.integers("MatMul", _matrices(p, 0, 1, a_zero=2, b_zero=3))


def _qlinear_conv(p: _Product) -> None:
    weights, bias = p.weights(3, zero=5, axis=0), p.optional(8)
    scales = p.scales(1) * p.scales(4) / p.scales(6)
    x = p.centred(0, zero=2)
    sums = p.linear("Conv", x, weights, bias=bias, attributes=p.node.attributes)
    p.requantised(sums, _along(scales, weights.ndim, 1), zero=7)


def _qlinear_matmul(p: _Product) -> None:
    factors = _matrices(p, 0, 3, a_zero=2, b_zero=5)
    scales = p.scales(1) * p.scales(4) / p.scales(6)
    if factors.first and scales.size > 1:
        raise NotCovered("scales of a constant's rows")
    x = p.centred(factors.x, zero=factors.zero)
    p.requantised(p.linear("MatMul", x, factors.weights, first=factors.first), scales, zero=7)


def _qgemm(p: _Product) -> None:
    """QGemm of com.microsoft: without a scale of its output, it is float32."""
    rows = integer(p.node, "transB", 0)
    if integer(p.node, "transA", 0):
        raise NotCovered("a transposed input")
    weights, bias = p.weights(3, zero=5, axis=0 if rows else -1), p.optional(6)
    scales = np.float32(number(p.node, "alpha", 1.0)) * p.scales(1) * p.scales(4)
    x = p.centred(0, zero=2)
    sums = p.linear("Gemm", x, weights, bias=bias, attributes={"transB": 1} if rows else {})
    if p.given(7):
        p.requantised(sums, scales / p.scales(7), zero=8)
    else:
        p.scaled(sums, scales, output=p.node.outputs[0])


def _matmul_to_float(p: _Product) -> None:
    """MatMulIntegerToFloat of com.microsoft, whose input's scale may be computed."""
    weights = p.weights(1, zero=5, axis=-1)
    sums = p.linear("MatMul", p.centred(0, zero=4), weights)
    _scaled(p, sums, p.given(2), p.given(3), p.given(6))


def _dynamic_matmul(p: _Product) -> None:
    """DynamicQuantizeMatMul of com.microsoft."""
    weights = p.weights(1, zero=3, axis=-1)
    if p.opset < DYNAMIC_OPSET:
        raise NotCovered("an operator set without DynamicQuantizeLinear")
    made = tuple(p.value(what) for what in ("integers", "step", "zero"))
    p.place(Node(p.value("quantised"), "DynamicQuantizeLinear", (p.given(0),), made))
    _scaled(
        p, p.linear("MatMul", p.less(made[0], made[2]), weights), made[1], p.given(2), p.given(4)
    )


def _scaled(p: _Product, sums: str, step: str, other: str, bias: str) -> None:
    """Sums times the product of two scales, which may be computed, plus a bias."""
    factors = sums, p.add("Mul", (step, other))
    if bias:
        p.add("Add", (p.add("Mul", factors), bias), output=p.node.outputs[0])
    else:
        p.add("Mul", factors, output=p.node.outputs[0])


def _block_matmul(p: _Product) -> None:
    """MatMulNBits of com.microsoft: float32 inputs, weights of 2, 4 or 8 bits in blocks."""
    weights = _unpacked(p)
    bias = p.given(5)
    sums = p.linear("MatMul", p.given(0), weights.T, output="" if bias else p.node.outputs[0])
    if bias:
        p.add("Add", (sums, bias), output=p.node.outputs[0])


def _unpacked(p: _Product) -> np.ndarray:
    """(N, K) weights; a block of them along K shares a scale and a zero point."""
    rows, columns, bits, block = (integer(p.node, n, 0) for n in ("N", "K", "bits", "block_size"))
    packed, scales, zeros = p.array(1), p.array(2), p.optional(3)
    blocks = -(-columns // max(block, 1))
    if p.given(4) or bits not in (2, 4, 8) or packed.dtype != np.uint8 or not rows * columns:
        raise NotCovered("weights in another order, or of another width")
    if scales.dtype != np.float32 or (zeros is not None and zeros.dtype != np.uint8):
        raise NotCovered("scales or zero points of another type")
    levels = _levels(packed.reshape(rows * blocks, -1), bits)[:, :block].astype(np.float32)
    offset = np.full((rows, blocks), 2 ** (bits - 1), np.float32)
    if zeros is not None:
        offset = _levels(zeros.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    centred = levels.reshape(rows, blocks, block) - offset[:, :, None]
    scaled = centred * scales.reshape(rows, blocks, 1)
    return np.asarray(scaled.reshape(rows, -1)[:, :columns])


def _levels(packed: np.ndarray, bits: int) -> np.ndarray:
    """Small integers of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    spread = (packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(spread.reshape(len(packed), -1))


def _along(array: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A number, or a row that lies along one axis of a larger array."""
    if array.size == 1:
        return array.reshape(())
    if array.ndim != 1:
        raise NotCovered("a zero point or scale for each of several matrices")
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


FORMS: dict[tuple[str, str], Callable[[_Product], None]] = {
    ("", "ConvInteger"): _conv_integer,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul_to_float,
    (MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (MICROSOFT, "MatMulNBits"): _block_matmul,
}
