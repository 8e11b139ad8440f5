"""What may follow a linear node inside one native pass: add, clamp, pool or convolve depthwise.

`Matcher` walks forward from a value over nodes the pass understands and says where it must stop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.layout import channels_last_shape
from cloister.graph.ops.depthwise import Depthwise, depthwise
from cloister.graph.ops.windows import pool_geometry
from cloister.ring.window_geometry import WindowGeometry

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass
class Epilogue:
    """The nodes one pass absorbs after its source value.

    Order of the operations: source (+ residual), clamp to [lo, hi], window: pooling, or a depthwise
    convolution clamped to [after_lo, after_hi]. `value` is the graph value that results; `covered`
    the names of the absorbed nodes.
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
    covered: list[str] = field(default_factory=list)


class Consumers:
    """Who reads each value."""

    def __init__(self, graph: Graph) -> None:
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self._readers.setdefault(value, []).append(node)
        self._outputs = frozenset(graph.outputs)

    def of(self, value: str) -> Sequence[Node]:
        """The nodes that read a value."""
        return self._readers.get(value, ())

    def only(self, value: str) -> Node | None:
        """The single reader of a value that nobody else, the caller included, sees."""
        readers = self.of(value)
        return readers[0] if len(readers) == 1 and value not in self._outputs else None


class Matcher:
    """Finds what one native pass can compute.

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
        """Everything that one pass can compute behind the value a linear node produces."""
        return self._extend(Epilogue(value), channels_first=channels_first)

    def starting_at(self, node: Node, *, channels_first: bool) -> Epilogue | None:
        """The pass that begins with a local node on a computed value; None if there is none."""
        found = Epilogue(node.inputs[0])
        if node.op in RESHAPES or not self._absorb(node, found, channels_first=channels_first):
            return None
        return self._extend(found, channels_first=channels_first)

    def _extend(self, found: Epilogue, *, channels_first: bool) -> Epilogue:
        while True:
            node = self.consumers.only(found.value)
            if node is None or not self._absorb(node, found, channels_first=channels_first):
                return found

    def _absorb(self, node: Node, found: Epilogue, *, channels_first: bool) -> bool:
        known = node.domain in ("", "ai.onnx") and self._absorbable(node)
        if not known or len(node.outputs) != 1:
            return False
        if not _absorb(
            self._graph, node, found, available=self._available, channels_first=channels_first
        ):
            return False
        found.covered.append(node.name)
        found.value = node.outputs[0]
        return True


def _absorb(
    graph: Graph,
    node: Node,
    found: Epilogue,
    *,
    available: Callable[[str], bool],
    channels_first: bool,
) -> bool:
    if node.op in ("Relu", "Clip"):
        return _absorb_clamp(graph, node, found)
    if node.op == "Add":
        return _absorb_add(graph, node, found, available)
    if node.op in POOLS:
        return _absorb_pool(graph, node, found, channels_first=channels_first)
    if node.op == "Conv":
        return _absorb_depthwise(graph, node, found, channels_first=channels_first)
    if node.op in RESHAPES:
        return _is_identity_reshape(graph, node, found.value, channels_first=channels_first)
    return False


def _absorb_clamp(graph: Graph, node: Node, found: Epilogue) -> bool:
    bounds = clamp_bounds(graph.constants, node)
    if bounds is None or (found.window is not None and found.depthwise is None):
        return False
    lo, hi = bounds
    if found.depthwise is not None:
        low, high = found.after_lo, found.after_hi
        found.after_lo, found.after_hi = min(max(low, lo), hi), min(max(high, lo), hi)
        return True
    # Clamping twice is clamping to the second interval after the first.
    if found.clamped:
        lo, hi = min(max(found.lo, lo), hi), min(max(found.hi, lo), hi)
    found.lo, found.hi, found.clamped = lo, hi, True
    return True


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


def _absorb_add(
    graph: Graph, node: Node, found: Epilogue, available: Callable[[str], bool]
) -> bool:
    if found.residual is not None or found.clamped or found.window is not None:
        return False
    if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return False
    other = node.inputs[1] if node.inputs[0] == found.value else node.inputs[0]
    same = graph.types.get(other) == graph.types.get(found.value)
    if not same or other in graph.constants or not available(other):
        return False
    found.residual = other
    return True


def _absorb_pool(graph: Graph, node: Node, found: Epilogue, *, channels_first: bool) -> bool:
    if found.window is not None or not channels_first:
        return False
    found.window = pool_geometry(graph, node)
    return found.window is not None


def _absorb_depthwise(graph: Graph, node: Node, found: Epilogue, *, channels_first: bool) -> bool:
    if found.window is not None or not channels_first or node.inputs[0] != found.value:
        return False
    found.depthwise = depthwise(graph, node)
    found.window = None if found.depthwise is None else found.depthwise.window
    return found.window is not None


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
