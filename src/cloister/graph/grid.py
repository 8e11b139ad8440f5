"""Values that are integers times one step, known from the nodes that make them.

A dequantised value is one: x = step * (q - zero), and q - zero is bounded by the type of q. Nodes
that only choose and move elements keep a value on its grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.graph.graph import MICROSOFT, Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS

LIMITS: Mapping[str, tuple[int, int]] = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (2, 4, 8)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (2, 4, 8)},
}
"""Smallest and largest integer, by the name of its type, of the types that are followed."""
MOVES = frozenset(
    (
        "DepthToSpace", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Relu",
        "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze",
    )
)  # fmt: skip
"""Operators whose first output has no element but those of the first input, and zeros."""


@dataclass(frozen=True)
class Grid:
    """Every element is `step`, rounded to float32, times an integer of magnitude `most` or less.

    A product of them is rounded to float32 once.
    """

    step: float
    most: int


def grid_of(graph: Graph, value: str) -> Grid | None:
    """The grid of a computed float32 value; None where none is known."""
    maker = {made: node for node in graph.nodes for made in node.outputs if made}
    waiting, seen, found = [value], set[str](), list[Grid]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = maker.get(name)
        if node is None or name != node.outputs[0]:
            return None
        if node.op == "DequantizeLinear":
            grid = _dequantised(graph, node)
            if grid is None:
                return None
            found.append(grid)
        elif node.domain not in STANDARD_DOMAINS:
            return None
        elif node.op == "Concat":
            waiting += node.inputs
        elif node.op in MOVES:
            waiting.append(node.inputs[0])
        else:
            return None
    if len({grid.step for grid in found}) != 1:
        return None
    return Grid(found[0].step, max(grid.most for grid in found))


def holds_integers(graph: Graph, node: Node) -> bool:
    """Whether a linear node multiplies integers, by integers."""
    grid = grid_of(graph, node.inputs[0])
    weights = graph.constants[node.inputs[1]]
    return grid is not None and grid.step == 1 and bool((weights == np.rint(weights)).all())


def _dequantised(graph: Graph, node: Node) -> Grid | None:
    """The grid of a DequantizeLinear with one step for the whole tensor."""
    if node.domain not in (*STANDARD_DOMAINS, MICROSOFT):
        return None
    source, step = graph.types.get(node.inputs[0]), graph.constants.get(node.inputs[1])
    if source is None or step is None or step.size != 1 or step.dtype != np.float32:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else ""
    most = reach(source.dtype, graph.constants.get(zero) if zero else np.zeros(1, np.int64))
    one = float(step.reshape(()))
    with np.errstate(divide="ignore", over="ignore"):
        usable = one > 0 and np.isfinite(np.float32(1) / np.float32(one)) and np.isfinite(one)
    return Grid(one, most) if most is not None and usable else None


def reach(dtype: np.dtype, zero: np.ndarray | None) -> int | None:
    """Largest magnitude of q - zero over all integers q of a small type; no `zero`: any of them."""
    if dtype.name not in LIMITS:
        return None
    lo, hi = LIMITS[dtype.name]
    if zero is None:
        return hi - lo
    zeros = zero.astype(np.int64)
    return max(hi - int(zeros.min()), int(zeros.max()) - lo)
