"""The pass that takes a bias out of a linear node that cannot carry it.

A linear node carries one finite constant per output channel. What is added otherwise is added
behind it, so that the product alone goes to a worker.
"""

from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS, integer, is_row, number
from cloister.graph.passes.rewrite import Rewrite

BIASED = ("Conv", "ConvTranspose", "Gemm")


def detach_biases(graph: Graph) -> Graph:
    """Computed, infinite and odd biases of products with constants in an Add of their own."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op in BIASED and node.domain in STANDARD_DOMAINS and _has_odd_bias(graph, node):
            _detach(rewrite, node)
    return rewrite.finish()


def _has_odd_bias(graph: Graph, node: Node) -> bool:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return False
    if sum(value in graph.constants for value in node.inputs[:2]) != 1:
        return False
    known = graph.types.get(node.outputs[0])
    if known is None or known.dtype != np.float32:
        return False
    bias = graph.constants.get(node.inputs[2])
    if bias is None or not np.isfinite(bias).all():
        return True
    if node.op != "Gemm":
        return False
    turned = node.inputs[0] in graph.constants or bool(integer(node, "transA", 0))
    return turned or not is_row(bias.shape, known.shape[-1] or 0)


def _detach(rewrite: Rewrite, node: Node) -> None:
    graph, bias = rewrite.graph, node.inputs[2]
    axes = len(graph.types[node.outputs[0]].shape) - 2
    product = rewrite.name(f"{node.name}_product")
    nodes = [replace(node, inputs=node.inputs[:2], outputs=(product,))]
    if node.op != "Gemm":
        target = rewrite.constant(f"{node.name}_target", np.array([-1] + [1] * axes))
        bias = _behind(rewrite, nodes, node, "Reshape", bias, target)
    elif number(node, "beta", 1.0) != 1.0:
        factor = np.array(number(node, "beta", 1.0), np.float32)
        beta = rewrite.constant(f"{node.name}_beta", factor)
        bias = _behind(rewrite, nodes, node, "Mul", bias, beta)
    name = rewrite.name(f"{node.name}_add")
    rewrite.swap([node], [*nodes, Node(name, "Add", (product, bias), node.outputs)])


def _behind(rewrite: Rewrite, nodes: list[Node], node: Node, op: str, *inputs: str) -> str:
    """The result of another node."""
    value = rewrite.name(f"{node.name}_bias")
    nodes.append(Node(rewrite.name(f"{node.name}_{op.lower()}"), op, inputs, (value,)))
    return value
