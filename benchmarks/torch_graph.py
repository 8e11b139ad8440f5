"""An ONNX model run by PyTorch, node by node: enough operators for networks that see.

For benchmarks only. PyTorch is handed in, so this module imports without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloister.errors import UnsupportedError

Tensor = Any
Attributes = Mapping[str, Any]
Operation = Callable[..., Tensor]


@dataclass(frozen=True)
class _Step:
    operation: Operation
    inputs: tuple[str, ...]
    output: str


class TorchGraph:
    """The nodes of a model as calls of PyTorch functions, weights already converted.

    Raises   UnsupportedError naming the first operator that is not known here
    """

    def __init__(self, torch: ModuleType, model: onnx.ModelProto) -> None:
        self._torch = torch
        known = Operators(torch)
        constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
        self._steps: list[_Step] = []
        for node in model.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                constants[node.output[0]] = _array(attributes["value"])
                continue
            operation = known.bind(node, attributes, constants)
            self._steps.append(_Step(operation, tuple(node.input), node.output[0]))
        self._input = next(v.name for v in model.graph.input if v.name not in constants)
        self._outputs = [value.name for value in model.graph.output]
        used = {name for step in self._steps for name in step.inputs}
        first = {name: torch.from_numpy(array) for name, array in constants.items() if name in used}
        last = {
            name: tensor.contiguous(memory_format=torch.channels_last)
            if tensor.dim() == 4
            else tensor
            for name, tensor in first.items()
        }
        self._constants = {False: first, True: last}
        self._last_use = {name: i for i, step in enumerate(self._steps) for name in step.inputs}

    def run(self, x: Tensor, *, channels_last: bool) -> list[Tensor]:
        """The outputs for one input."""
        if channels_last:
            x = x.contiguous(memory_format=self._torch.channels_last)
        values = {"": None, **self._constants[channels_last], self._input: x}
        for i, step in enumerate(self._steps):
            values[step.output] = step.operation(*(values[name] for name in step.inputs))
            for name in step.inputs:
                # Memory that is free again stays in the cache.
                if self._last_use[name] == i and name not in self._outputs and name:
                    values.pop(name, None)
        return [values[name] for name in self._outputs]


class Operators:
    """ONNX operator to PyTorch call."""

    def __init__(self, torch: ModuleType) -> None:
        self._torch = torch
        self._nn = torch.nn.functional

    def bind(
        self, node: onnx.NodeProto, attributes: Attributes, constants: Mapping[str, np.ndarray]
    ) -> Operation:
        """The call for one node, its attributes already read.

        Raises   UnsupportedError naming the node
        """
        if any(node.output[1:]) and node.op_type != "Dropout":
            raise UnsupportedError(f"node {node.name!r}: the PyTorch baseline takes one output")
        simple = self._simple().get(node.op_type)
        if simple is not None:
            return simple
        builders: dict[str, Callable[[Attributes], Operation]] = {
            "Conv": self._conv,
            "Gemm": self._gemm,
            "MaxPool": self._max_pool,
            "AveragePool": self._average_pool,
            "Flatten": self._flatten,
            "Softmax": lambda a: lambda x: x.softmax(a.get("axis", -1)),
            "Concat": lambda a: lambda *xs: self._torch.cat(xs, a["axis"]),
            "Transpose": lambda a: lambda x: x.permute(tuple(a["perm"])),
            "LeakyRelu": lambda a: lambda x: self._nn.leaky_relu(x, a.get("alpha", 0.01)),
            "BatchNormalization": self._batch_norm,
            "Clip": self._clip,
        }
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]].tolist()
            return lambda x, _: x.reshape([s or x.shape[i] for i, s in enumerate(shape)])
        if node.op_type not in builders:
            raise UnsupportedError(
                f"node {node.name or node.output[0]!r}: the PyTorch baseline does not know "
                f"{node.op_type}"
            )
        return builders[node.op_type](attributes)

    def _simple(self) -> dict[str, Operation]:
        return {
            "Relu": self._torch.relu,
            "Sigmoid": self._torch.sigmoid,
            "Tanh": self._torch.tanh,
            "Add": self._torch.add,
            "Mul": self._torch.mul,
            "MatMul": self._torch.matmul,
            "Identity": lambda x: x,
            "Dropout": lambda x, *_: x,
            "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
        }

    def _conv(self, attributes: Attributes) -> Operation:
        options = {
            "stride": tuple(attributes.get("strides", ())) or 1,
            "dilation": tuple(attributes.get("dilations", ())) or 1,
            "groups": attributes.get("group", 1),
        }

        def conv(x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
            call = self._nn.conv2d if w.dim() == 4 else self._nn.conv1d
            x, pads = self._padded(x, attributes, tuple(w.shape[2:]), value=0.0)
            return call(x, w, b, padding=pads, **options)

        return conv

    def _gemm(self, attributes: Attributes) -> Operation:
        alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)

        def gemm(a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
            a = a.t() if attributes.get("transA") else a
            b = b.t() if attributes.get("transB") else b
            if c is None:
                return alpha * (a @ b)
            return self._torch.addmm(c, a, b, beta=beta, alpha=alpha)

        return gemm

    def _max_pool(self, attributes: Attributes) -> Operation:
        kernel = tuple(attributes["kernel_shape"])
        options = {
            "stride": tuple(attributes.get("strides", (1,) * len(kernel))),
            "dilation": tuple(attributes.get("dilations", (1,) * len(kernel))),
            "ceil_mode": bool(attributes.get("ceil_mode", 0)),
        }

        def pool(x: Tensor) -> Tensor:
            call = self._nn.max_pool2d if len(kernel) == 2 else self._nn.max_pool1d
            x, pads = self._padded(x, attributes, kernel, value=-float("inf"))
            return call(x, kernel, padding=pads, **options)

        return pool

    def _average_pool(self, attributes: Attributes) -> Operation:
        kernel = tuple(attributes["kernel_shape"])
        whole = bool(attributes.get("count_include_pad", 0))
        options = {
            "stride": tuple(attributes.get("strides", (1,) * len(kernel))),
            "ceil_mode": bool(attributes.get("ceil_mode", 0)),
        }
        if len(kernel) == 2:
            options["count_include_pad"] = whole

        def pool(x: Tensor) -> Tensor:
            call = self._nn.avg_pool2d if len(kernel) == 2 else self._nn.avg_pool1d
            padded, pads = self._padded(x, attributes, kernel, value=0.0)
            if padded is not x and not whole:
                raise UnsupportedError("the PyTorch baseline averages no unequal padding")
            return call(padded, kernel, padding=pads, **options)

        return pool

    def _padded(
        self, x: Tensor, attributes: Attributes, kernel: Sequence[int], *, value: float
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Padding that PyTorch's call can do itself, else the input padded beforehand."""
        before, after = _pads(x.shape[2:], attributes, kernel)
        if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
            return x, before
        flat = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
        return self._nn.pad(x, flat, value=value), (0,) * len(kernel)

    def _flatten(self, attributes: Attributes) -> Operation:
        axis = attributes.get("axis", 1)
        return lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1)

    def _batch_norm(self, attributes: Attributes) -> Operation:
        epsilon = attributes.get("epsilon", 1e-5)
        return lambda x, scale, b, mean, var: self._nn.batch_norm(
            x, mean, var, scale, b, False, 0.0, epsilon
        )

    def _clip(self, attributes: Attributes) -> Operation:
        low, high = attributes.get("min"), attributes.get("max")

        def clip(x: Tensor, lo: Tensor = low, hi: Tensor = high) -> Tensor:
            return self._torch.clamp(x, lo, hi)

        return clip


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    # A copy: PyTorch refuses to promise not to write to a read-only array.
    return np.array(numpy_helper.to_array(tensor))


def _pads(
    size: Sequence[int], attributes: Attributes, kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each axis."""
    mode, rank = attributes.get("auto_pad", b"NOTSET"), len(kernel)
    if mode in (b"NOTSET", b"VALID"):
        pads = tuple(attributes.get("pads", (0,) * (2 * rank))) if mode == b"NOTSET" else ()
        return (pads[:rank], pads[rank:]) if pads else ((0,) * rank, (0,) * rank)
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    small, large = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    upper = mode == b"SAME_UPPER"
    return (tuple(small), tuple(large)) if upper else (tuple(large), tuple(small))
