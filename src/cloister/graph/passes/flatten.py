"""The pass that turns a dense layer on a flattened image into a convolution.

A runtime that keeps images channels-last would have to permute them before flattening; a
convolution whose kernel covers the whole image reads them as they are.
"""

import math
from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import float_weights, is_linear
from cloister.graph.passes.rewrite import Rewrite


def fold_flatten(graph: Graph) -> Graph:
    """Flatten followed by a dense layer: a convolution over the whole image, then Flatten."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op not in ("Gemm", "MatMul") or not is_linear(graph, node):
            continue
        flatten = rewrite.maker(node.inputs[0])
        if flatten is None or not _flattens_image(graph, flatten, node.inputs[0]):
            continue
        # The Flatten itself stays for its other readers; unused, it is removed.
        rewrite.swap([node], _convolution(rewrite, node, flatten.inputs[0]))
    return rewrite.finish()


def _flattens_image(graph: Graph, node: Node, value: str) -> bool:
    if node.op not in ("Flatten", "Reshape") or node.domain not in ("", "ai.onnx"):
        return False
    before, after = graph.types.get(node.inputs[0]), graph.types.get(value)
    if before is None or after is None or len(before.shape) not in (3, 4):
        return False
    if len(after.shape) != 2 or before.shape[0] != after.shape[0] or None in before.shape[1:]:
        return False
    sizes = [size or 1 for size in before.shape[1:]]
    # On a 1x1 image there is nothing to permute, and the dense layer can stay.
    return after.shape[1] == math.prod(sizes) and math.prod(sizes[1:]) > 1


def _convolution(rewrite: Rewrite, node: Node, image: str) -> list[Node]:
    graph = rewrite.graph
    weights, bias = float_weights(graph, node)
    sizes = [size or 1 for size in graph.types[image].shape[1:]]
    kernel = np.ascontiguousarray(weights.reshape(len(weights), *sizes))
    inputs = [image, rewrite.constant(f"{node.name}_kernel", kernel)]
    if len(node.inputs) > 2 and node.inputs[2]:
        inputs.append(rewrite.constant(f"{node.name}_bias", bias))
    wide = rewrite.name(f"{node.name}_image")
    convolution = replace(
        node,
        op="Conv",
        inputs=tuple(inputs),
        outputs=(wide,),
        attributes={"kernel_shape": tuple(sizes[1:])},
    )
    name = rewrite.name(f"{node.name}_flatten")
    return [convolution, Node(name, "Flatten", (wide,), node.outputs, {"axis": 1})]
