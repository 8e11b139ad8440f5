"""A graph whose sizes are those that ONNX Runtime finds.

ONNX Runtime computes, so its sizes are right, and ONNX's shape inference states others at times.
These nodes are known, besides those for which padding.py states the padding in numbers:

    Slice                   backwards, to the largest number
    MaxPool, AveragePool    `auto_pad` and `ceil_mode`, of an image with a free size
    other pooling           `auto_pad` and `ceil_mode`
    ConvTranspose           `auto_pad` and `output_shape`, of an image with a free size
    NonZero                 of a scalar
    PRelu                   of a slope that is larger than its input
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cloister.graph.batch import computed_from
from cloister.graph.captures import every_node
from cloister.graph.graph import Graph, Node, OpaqueType
from cloister.graph.onnx.export import known_type
from cloister.graph.ops.linear_nodes import integer, stated_pads
from cloister.graph.part import made_by

_STATED = ("AveragePool", "MaxPool")


def with_certain_sizes(graph: Graph) -> Graph:
    """The graph without the sizes that may be others.

    What is computed from the output of such a node may have other sizes too: its number of sizes is
    kept, or not even that.
    """

    def affected(differs: Callable[[Graph, Node], bool]) -> frozenset[str]:
        nodes = (n for n in graph.nodes if any(differs(graph, one) for one in every_node((n,))))
        return computed_from(graph, made_by(nodes))

    unranked = affected(_may_differ_in_rank)
    values = affected(_may_differ) | unranked
    if not values:
        return graph
    opaque = dict(graph.opaque)
    for value in values:
        known = known_type(graph, value)
        if not known.proto:
            rank = None if known.sizes is None or value in unranked else len(known.sizes)
            opaque[value] = OpaqueType(known.dtype, None if rank is None else ("",) * rank)
    types = {name: known for name, known in graph.types.items() if name not in values}
    return replace(graph, types=types, opaque=opaque)


def _may_differ(graph: Graph, node: Node) -> bool:
    first = graph.sizes(node.inputs[0]) if node.inputs else ()
    if node.op == "Slice":
        return _may_reach_the_largest(graph, node)
    if node.op == "NonZero":
        return not first
    if not node.op.endswith("Pool"):
        return False
    known = first is not None and all(isinstance(size, int) for size in first[2:])
    words = stated_pads(node, 0) is None or integer(node, "ceil_mode", 0) != 0
    return words and not (known and not node.domain and node.op in _STATED)


def _may_differ_in_rank(graph: Graph, node: Node) -> bool:
    if node.op == "ConvTranspose":
        return stated_pads(node, 0) is None
    if node.op != "PRelu":
        return False
    x, slope = (graph.sizes(value) for value in node.inputs)
    if x is None or slope is None or len(slope) > len(x):
        return True
    pairs = zip(slope, x[len(x) - len(slope) :], strict=True)
    return any(size not in (1, other) for size, other in pairs)


def _may_reach_the_largest(graph: Graph, node: Node) -> bool:
    """Whether a slice may go backwards, and end at the largest number of its type."""
    if len(node.inputs) < 5 or not node.inputs[4]:
        return False
    ends, steps = (graph.constants.get(node.inputs[i]) for i in (2, 4))
    back = steps is None or bool((steps < 0).any())
    return back and (ends is None or bool((ends == np.iinfo(ends.dtype).max).any()))
