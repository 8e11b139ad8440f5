"""The pass that gives an average over a cut-off window, padding counted, its padding first.

In ceil mode the last window may reach beyond the padding. Such an average counts the positions of
the padding that it has; once they are zeros of a larger image, that is what a kernel counts anyway.
"""

from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import stated_pads
from cloister.graph.ops.windows import pool_geometry
from cloister.graph.passes.rewrite import Rewrite

PADS_ARE_AN_INPUT = 11
"""The first operator set whose Pad reads its amounts as an input."""


def with_counted_pads(graph: Graph) -> Graph:
    """The graph with a Pad before each such AveragePool."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op != "AveragePool" or not node.attributes.get("count_include_pad", 0):
            continue
        known = graph.types.get(node.inputs[0])
        pads = None if known is None else stated_pads(node, len(known.shape) - 2)
        if pads is not None and pool_geometry(graph, node) is None:
            rewrite.swap([node], _padded(rewrite, node, pads))
    return rewrite.finish()


def _padded(rewrite: Rewrite, node: Node, pads: tuple[int, ...]) -> list[Node]:
    axes = len(pads) // 2
    amounts = (0, 0, *pads[:axes], 0, 0, *pads[axes:])
    inputs, attributes = [node.inputs[0]], dict[str, object]()
    if rewrite.graph.opset < PADS_ARE_AN_INPUT:
        attributes["pads"] = amounts
    else:
        inputs.append(rewrite.constant(f"{node.name}_pads", np.array(amounts, np.int64)))
    wide = rewrite.name(f"{node.name}_padded")
    pad = Node(rewrite.name(f"{node.name}_pad"), "Pad", tuple(inputs), (wide,), attributes)
    kept = {
        name: value
        for name, value in node.attributes.items()
        if name not in ("pads", "auto_pad", "count_include_pad")
    }
    return [pad, replace(node, inputs=(wide,), attributes=kept)]
