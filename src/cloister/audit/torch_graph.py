"""A graph run by PyTorch, node by node, with gradients where its weights need them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.errors import UnsupportedError
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS

Operation = Callable[..., Tensor]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Step:
    operation: Operation
    inputs: tuple[str, ...]
    output: str


class TorchGraph:
    """The nodes of a graph as calls of PyTorch functions.

    constants   the graph's constants as tensors; `run` takes others in their place

    Raises   UnsupportedError naming the first node that PyTorch is not taught here
    """

    def __init__(self, graph: Graph) -> None:
        self._steps = [
            _Step(operation(node, graph.opset), node.inputs, node.outputs[0])
            for node in graph.nodes
        ]
        used = {name for step in self._steps for name in step.inputs} | set(graph.outputs)
        # Copies: PyTorch refuses to promise not to write to a read-only array.
        self.constants: dict[str, Tensor] = {
            name: torch.from_numpy(np.array(array))
            for name, array in graph.constants.items()
            if name in used
        }
        self._inputs, self._outputs = graph.inputs, graph.outputs
        self._last_use = {name: i for i, step in enumerate(self._steps) for name in step.inputs}

    def run(self, inputs: Sequence[Tensor], constants: Tensors | None = None) -> list[Tensor]:
        """The outputs for the inputs, both in the graph's order."""
        values: dict[str, Tensor | None] = {"": None, **(constants or self.constants)}
        values |= zip(self._inputs, inputs, strict=True)
        for i, step in enumerate(self._steps):
            values[step.output] = step.operation(*(values[name] for name in step.inputs))
            for name in step.inputs:
                # Memory that is free again stays in the cache.
                if self._last_use[name] == i and name not in self._outputs and name:
                    values.pop(name, None)
        found = (values[name] for name in self._outputs)
        return [tensor for tensor in found if tensor is not None]


def operation(node: Node, opset: int) -> Operation:
    """One node as a call of its inputs.

    Raises   UnsupportedError naming the node
    """
    if node.domain not in STANDARD_DOMAINS or node.op not in {**SIMPLE, **WITH_ATTRIBUTES}:
        raise UnsupportedError(
            f"node {node.name!r} ({node.domain or 'ONNX'} {node.op}): not among the operators "
            "that run in PyTorch here; leave the node in the exposed part"
        )
    if any(node.outputs[1:]) and node.op != "Dropout":
        raise UnsupportedError(f"node {node.name!r} ({node.op}): only one output runs in PyTorch")
    if node.op in SIMPLE:
        return SIMPLE[node.op]
    return WITH_ATTRIBUTES[node.op](Attributes(node, opset))


@dataclass(frozen=True)
class Attributes:
    """The attributes of a node, with ONNX's defaults."""

    node: Node
    opset: int

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.node.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def integer(self, name: str, default: int) -> int:
        """An integer."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def integers(self, name: str) -> tuple[int, ...]:
        """Integers; none when absent."""
        value = self.node.attributes.get(name)
        return tuple(int(one) for one in value) if isinstance(value, tuple) else ()

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def unsupported(self, what: str) -> UnsupportedError:
        """The error of a variant that PyTorch does not run."""
        return UnsupportedError(
            f"node {self.node.name!r} ({self.node.op}): {what} does not run in PyTorch here"
        )


# ---- linear operators


def _conv(of: Attributes) -> Operation:
    strides, dilations = of.integers("strides"), of.integers("dilations")
    groups = of.integer("group", 1)

    def conv(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        call = functional.conv2d if w.dim() == 4 else functional.conv1d
        x, pads = _padded(x, of, tuple(w.shape[2:]), value=0.0)
        return call(x, w, b, strides or 1, pads, dilations or 1, groups)

    return conv


def _gemm(of: Attributes) -> Operation:
    alpha, beta = of.number("alpha", 1.0), of.number("beta", 1.0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.t() if of.integer("transA", 0) else a
        b = b.t() if of.integer("transB", 0) else b
        if c is None:
            return alpha * (a @ b)
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


# ---- windows


def _max_pool(of: Attributes) -> Operation:
    kernel = of.integers("kernel_shape")
    ones = (1,) * len(kernel)
    strides, dilations = of.integers("strides") or ones, of.integers("dilations") or ones
    ceil = bool(of.integer("ceil_mode", 0))

    def pool(x: Tensor) -> Tensor:
        call = functional.max_pool2d if len(kernel) == 2 else functional.max_pool1d
        x, pads = _padded(x, of, kernel, value=-math.inf)
        return call(x, kernel, strides, pads, dilations, ceil)

    return pool


def _average_pool(of: Attributes) -> Operation:
    kernel = of.integers("kernel_shape")
    whole = bool(of.integer("count_include_pad", 0))
    strides = of.integers("strides") or (1,) * len(kernel)
    ceil = bool(of.integer("ceil_mode", 0))

    def pool(x: Tensor) -> Tensor:
        call = functional.avg_pool2d if len(kernel) == 2 else functional.avg_pool1d
        padded, pads = _padded(x, of, kernel, value=0.0)
        if padded is not x and not whole:
            raise of.unsupported("an average over unequal padding")
        return call(padded, kernel, strides, pads, ceil, whole)

    return pool


def _padded(
    x: Tensor, of: Attributes, kernel: Sequence[int], *, value: float
) -> tuple[Tensor, tuple[int, ...]]:
    """Padding that PyTorch's call can do itself, else the input padded beforehand."""
    before, after = _pads(x.shape[2:], of, kernel)
    if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return x, before
    flat = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
    return functional.pad(x, flat, value=value), (0,) * len(kernel)


def _pads(
    size: Sequence[int], of: Attributes, kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each axis."""
    mode, rank = of.text("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", "VALID"):
        pads = of.integers("pads") if mode == "NOTSET" else ()
        return (pads[:rank], pads[rank:]) if pads else ((0,) * rank, (0,) * rank)
    strides = of.integers("strides") or (1,) * rank
    dilations = of.integers("dilations") or (1,) * rank
    small, large = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    upper = mode == "SAME_UPPER"
    return (tuple(small), tuple(large)) if upper else (tuple(large), tuple(small))


# ---- normalisation and activation


def _batch_norm(of: Attributes) -> Operation:
    epsilon = of.number("epsilon", 1e-5)
    return lambda x, scale, b, mean, var: functional.batch_norm(
        x, mean, var, scale, b, False, 0.0, epsilon
    )


def _layer_norm(of: Attributes) -> Operation:
    epsilon = of.number("epsilon", 1e-5)

    def norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        axis = of.integer("axis", -1) % x.dim()
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)

    return norm


def _softmax(of: Attributes) -> Operation:
    if of.opset < 13:
        # Older ones flatten the axes from `axis` on.
        axis = of.integer("axis", 1)
        return lambda x: x.flatten(axis).softmax(-1).reshape(x.shape)
    return lambda x: x.softmax(of.integer("axis", -1))


def _clip(of: Attributes) -> Operation:
    low, high = (of.number("min", -math.inf), of.number("max", math.inf))

    def clip(x: Tensor, lo: Tensor | None = None, hi: Tensor | None = None) -> Tensor:
        return x.clamp(
            low if lo is None else float(lo.item()), high if hi is None else float(hi.item())
        )

    return clip


def _gelu(of: Attributes) -> Operation:
    return partial(functional.gelu, approximate=of.text("approximate", "none"))


# ---- shapes


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([size or x.shape[i] for i, size in enumerate(shape.tolist())])


def _flatten(of: Attributes) -> Operation:
    axis = of.integer("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(of: Attributes) -> Operation:
    return lambda x: x.permute(of.integers("perm") or tuple(range(x.dim()))[::-1])


def _squeeze(of: Attributes) -> Operation:
    def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = of.integers("axes") if axes is None else tuple(axes.tolist())
        return x.squeeze(chosen) if chosen else x.squeeze()

    return squeeze


def _unsqueeze(of: Attributes) -> Operation:
    def unsqueeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = of.integers("axes") if axes is None else tuple(axes.tolist())
        rank = x.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _pad(of: Attributes) -> Operation:
    if of.text("mode", "constant") != "constant":
        raise of.unsupported("padding that repeats values")

    def pad(x: Tensor, pads: Tensor, value: Tensor | None = None, *axes: Tensor) -> Tensor:
        if any(axis is not None for axis in axes):
            raise of.unsupported("padding of chosen axes")
        sizes, rank = pads.tolist(), x.dim()
        flat = [size for axis in reversed(range(rank)) for size in sizes[axis::rank]]
        return functional.pad(x, flat, value=0.0 if value is None else float(value.item()))

    return pad


def _gather(of: Attributes) -> Operation:
    def gather(x: Tensor, index: Tensor) -> Tensor:
        axis = of.integer("axis", 0) % x.dim()
        chosen = index.long() % x.shape[axis]
        found = x.index_select(axis, chosen.reshape(-1))
        return found.reshape(*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])

    return gather


def _slice(x: Tensor, starts: Tensor, ends: Tensor, *more: Tensor | None) -> Tensor:
    given = [None if one is None else one.tolist() for one in more]
    axes = given[0] if given and given[0] is not None else list(range(len(starts)))
    steps = given[1] if len(given) > 1 and given[1] is not None else [1] * len(axes)
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        places = range(x.shape[axis])[slice(start, end, step)]
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


def _reduce_mean(of: Attributes) -> Operation:
    keep = bool(of.integer("keepdims", 1))

    def mean(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = of.integers("axes") if axes is None else tuple(axes.tolist())
        if not chosen and of.integer("noop_with_empty_axes", 0):
            return x
        return x.mean(chosen or tuple(range(x.dim())), keepdim=keep)

    return mean


def _over_places(reduce: Callable[..., Tensor]) -> Operation:
    return lambda x: reduce(x, tuple(range(2, x.dim())), keepdim=True)


SIMPLE: dict[str, Operation] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Sqrt": torch.sqrt,
    "Neg": torch.neg,
    "HardSwish": functional.hardswish,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "MatMul": torch.matmul,
    "Identity": lambda x: x,
    "Dropout": lambda x, *_: x,
    "Reshape": _reshape,
    "Slice": _slice,
    "GlobalAveragePool": _over_places(torch.mean),
    "GlobalMaxPool": _over_places(torch.amax),
}
WITH_ATTRIBUTES: dict[str, Callable[[Attributes], Operation]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "LeakyRelu": lambda of: lambda x: functional.leaky_relu(x, of.number("alpha", 0.01)),
    "Clip": _clip,
    "Gelu": _gelu,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda of: lambda *xs: torch.cat(xs, of.integer("axis", 0)),
    "Pad": _pad,
    "Gather": _gather,
    "ReduceMean": _reduce_mean,
}
