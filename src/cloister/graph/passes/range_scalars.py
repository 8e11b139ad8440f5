"""The pass that makes scalars of a Range's numbers.

ONNX Runtime computes a Range of vectors of one number, as functions of ONNX's own pass them, and
refuses it once their shape is known.
"""

from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS
from cloister.graph.passes.rewrite import Rewrite


def scalar_ranges(graph: Graph) -> Graph:
    """The graph with scalars in the place of vectors of one number that a Range reads."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op != "Range" or node.domain not in STANDARD_DOMAINS:
            continue
        known = [graph.types.get(value) for value in node.inputs]
        if not any(one is not None and one.shape == (1,) for one in known):
            continue
        added: list[Node] = []
        inputs = []
        for value, one in zip(node.inputs, known, strict=True):
            if one is None or one.shape != (1,):
                inputs.append(value)
                continue
            inputs.append(rewrite.name(f"{value}_scalar"))
            target = rewrite.constant(f"{value}_shape", np.zeros(0, np.int64))
            name = rewrite.name(f"{node.name}_reshape")
            added.append(Node(name, "Reshape", (value, target), (inputs[-1],)))
        rewrite.swap([node], [*added, replace(node, inputs=tuple(inputs))])
    return rewrite.finish()
