"""The pass that turns an average over the whole image into a global average pooling."""

from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, integers
from cloister.graph.passes.rewrite import Rewrite


def fold_means(graph: Graph) -> Graph:
    """ReduceMean over all axes behind the channels: GlobalAveragePool, then Flatten if need be."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if not _is_image_mean(graph, node):
            continue
        pool = replace(
            node, op="GlobalAveragePool", inputs=(node.inputs[0],), attributes={}, domain=""
        )
        if integer(node, "keepdims", 1):
            rewrite.swap([node], [pool])
            continue
        wide = rewrite.name(f"{node.name}_image")
        name = rewrite.name(f"{node.name}_flatten")
        flatten = Node(name, "Flatten", (wide,), node.outputs, {"axis": 1})
        rewrite.swap([node], [replace(pool, outputs=(wide,)), flatten])
    return rewrite.finish()


def _is_image_mean(graph: Graph, node: Node) -> bool:
    if node.op != "ReduceMean" or node.domain not in ("", "ai.onnx"):
        return False
    known = graph.types.get(node.inputs[0])
    if known is None or known.dtype != np.float32 or len(known.shape) not in (3, 4):
        return False
    axes = integers(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        given = graph.constants.get(node.inputs[1])
        axes = () if given is None else tuple(int(axis) for axis in given.reshape(-1))
    rank = len(known.shape)
    return sorted(axis % rank for axis in axes) == list(range(2, rank))
