"""The operations that may follow a linear node in one fused step: add, clamp, pool, convolve
depthwise.

`Matcher` follows the nodes behind a value as far as a fused step can compute them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.layout import channels_last_shape
from cloister.graph.ops.depthwise import Depthwise, depthwise
from cloister.graph.ops.windows import pool_geometry
from cloister.graph.part import RESHAPES, reads
from cloister.ring.window_geometry import WindowGeometry

POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True)
class Epilogue:
    """The nodes one fused step absorbs after its source value.

    Order of the operations: source (+ residual), clamp to [lo, hi], window: pooling, or a depthwise
    convolution clamped to [after_lo, after_hi]. `value` is the graph value that results; `covered`
    the names of the absorbed nodes, in order.
    """

    value: str
    residual: str | None = None
    lo: float = -np.inf
    hi: float = np.inf
    window: WindowGeometry | None = None
    clamped: bool = False
    depthwise: Depthwise | None = None
    after_lo: float = -np.inf
    after_hi: float = np.inf
    covered: tuple[str, ...] = ()


class Consumers:
    """Who reads each value, in subgraphs too."""

    def __init__(self, graph: Graph) -> None:
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(reads(node)):
                self._readers.setdefault(value, []).append(node)
        self._outputs = frozenset(graph.outputs)

    def of(self, value: str) -> Sequence[Node]:
        """The nodes that read a value."""
        return self._readers.get(value, ())

    def only(self, value: str) -> Node | None:
        """The single reader of a value that no other node, and no caller, reads."""
        readers = self.of(value)
        return readers[0] if len(readers) == 1 and value not in self._outputs else None


class Matcher:
    """Finds what one fused step can compute.

    `absorbable` tells nodes the plan keeps inside; `available` tells values already computed.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        absorbable: Callable[[Node], bool],
        available: Callable[[str], bool],
    ) -> None:
        self.consumers = Consumers(graph)
        self._graph = graph
        self._absorbable = absorbable
        self._available = available

    def after(self, value: str, *, channels_first: bool) -> Epilogue:
        """Everything that one fused step can compute behind a linear node's value."""
        return self._extend(Epilogue(value), channels_first=channels_first)

    def starting_at(self, node: Node, *, channels_first: bool) -> Epilogue | None:
        """The epilogue that begins with a local node on a computed value; None if there is none."""
        if node.op in RESHAPES:
            return None
        first = self._absorb(node, Epilogue(node.inputs[0]), channels_first=channels_first)
        return first and self._extend(first, channels_first=channels_first)

    def _extend(self, found: Epilogue, *, channels_first: bool) -> Epilogue:
        node = self.consumers.only(found.value)
        while node is not None:
            grown = self._absorb(node, found, channels_first=channels_first)
            if grown is None:
                break
            found, node = grown, self.consumers.only(grown.value)
        return found

    def _absorb(self, node: Node, found: Epilogue, *, channels_first: bool) -> Epilogue | None:
        if not self._absorbable(node):
            return None
        grown = absorb(self._graph, node, found, channels_first=channels_first)
        there = grown is None or grown.residual is None or self._available(grown.residual)
        return grown if there else None


def absorb(graph: Graph, node: Node, found: Epilogue, *, channels_first: bool) -> Epilogue | None:
    """The epilogue with `node`, a reader of its value, as well; None where no step can have it."""
    known = node.domain in ("", "ai.onnx") and len(node.outputs) == 1
    if not known or found.value not in node.inputs:
        return None
    grown = None
    if node.op in ("Relu", "Clip"):
        grown = _clamp(graph, node, found)
    elif node.op == "Add":
        grown = _add(graph, node, found)
    elif node.op in POOLS and channels_first:
        grown = _pool(graph, node, found)
    elif node.op == "Conv" and channels_first:
        grown = _depthwise(graph, node, found)
    elif node.op in RESHAPES and _is_identity_reshape(
        graph, node, found.value, channels_first=channels_first
    ):
        grown = found
    covered = (*found.covered, node.name)
    return grown and replace(grown, value=node.outputs[0], covered=covered)


def _clamp(graph: Graph, node: Node, found: Epilogue) -> Epilogue | None:
    bounds = clamp_bounds(graph.constants, node)
    if bounds is None or (found.window is not None and found.depthwise is None):
        return None
    lo, hi = bounds
    # Clamping twice is clamping to the second interval after the first.
    if found.depthwise is not None:
        low, high = found.after_lo, found.after_hi
        return replace(found, after_lo=min(max(low, lo), hi), after_hi=min(max(high, lo), hi))
    low, high = (found.lo, found.hi) if found.clamped else (lo, hi)
    return replace(found, lo=min(max(low, lo), hi), hi=min(max(high, lo), hi), clamped=True)


def clamp_bounds(constants: Mapping[str, np.ndarray], node: Node) -> tuple[float, float] | None:
    """[lo, hi] of a Relu or Clip with constant bounds, as float32 values."""
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for i, key in enumerate(("min", "max")):
        if key in node.attributes:
            bounds[i] = float(np.float32(node.attributes[key]))  # type: ignore[arg-type]
        elif len(node.inputs) > i + 1 and node.inputs[i + 1]:
            constant = constants.get(node.inputs[i + 1])
            if constant is None or constant.size != 1:
                return None
            bounds[i] = float(np.float32(constant.reshape(())))
    if np.isnan(bounds).any() or bounds[0] > bounds[1]:
        return None
    return bounds[0], bounds[1]


def _add(graph: Graph, node: Node, found: Epilogue) -> Epilogue | None:
    if found.residual is not None or found.clamped or found.window is not None:
        return None
    if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return None
    other = node.inputs[1] if node.inputs[0] == found.value else node.inputs[0]
    same = graph.types.get(other) == graph.types.get(found.value)
    return replace(found, residual=other) if same and other not in graph.constants else None


def _pool(graph: Graph, node: Node, found: Epilogue) -> Epilogue | None:
    window = pool_geometry(graph, node) if found.window is None else None
    return None if window is None else replace(found, window=window)


def _depthwise(graph: Graph, node: Node, found: Epilogue) -> Epilogue | None:
    if found.window is not None or node.inputs[0] != found.value:
        return None
    filters = depthwise(graph, node)
    return None if filters is None else replace(found, window=filters.window, depthwise=filters)


def _is_identity_reshape(graph: Graph, node: Node, value: str, *, channels_first: bool) -> bool:
    before, after = graph.types.get(value), graph.types.get(node.outputs[0])
    if before is None or after is None or len(after.shape) < 2:
        return False
    if node.inputs[0] != value or before.shape[0] != after.shape[0]:
        return False
    h, w, c = channels_last_shape(before.shape, channels_first=channels_first)
    rest = [size for size in after.shape[1:] if size != 1]
    first = after.shape[1] if channels_first or len(after.shape) == 2 else after.shape[-1]
    return h * w == 1 and (rest in ([c], []) and first == c)
