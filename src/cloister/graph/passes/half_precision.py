"""The pass that computes products of half-precision values in float32, as ONNX Runtime does.

Every float16 and bfloat16 number is a float32 number. The result is rounded to the type it had.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np

from cloister.graph.element_types import element_number
from cloister.graph.graph import LINEAR_OPS, Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS
from cloister.graph.passes.rewrite import Rewrite

HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
PRODUCTS = (*LINEAR_OPS, "Einsum")
FLOAT = element_number(np.dtype(np.float32))


def widen_halves(graph: Graph) -> Graph:
    """Products of half-precision values with constants: between casts, in float32."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op not in PRODUCTS or node.domain not in STANDARD_DOMAINS:
            continue
        known = graph.types.get(node.outputs[0])
        constant = sum(value in graph.constants for value in node.inputs[:2])
        if known is None or known.dtype not in HALVES or constant != 1:
            continue
        casts, inputs = [], []
        for value in node.inputs:
            wide = value
            if value in graph.constants:
                array = graph.constants[value].astype(np.float32)
                wide = rewrite.constant(f"{value}_float32", array)
            elif value:
                wide = rewrite.name(f"{value}_float32")
                casts.append(_cast(rewrite, node, value, wide, FLOAT))
            inputs.append(wide)
        product = rewrite.name(f"{node.outputs[0]}_float32")
        wide_node = replace(node, inputs=tuple(inputs), outputs=(product,))
        last = _cast(rewrite, node, product, node.outputs[0], element_number(known.dtype))
        rewrite.swap([node], [*casts, wide_node, last])
    return rewrite.finish()


def _cast(rewrite: Rewrite, node: Node, source: str, result: str, element: int) -> Node:
    name = rewrite.name(f"{node.name}_cast")
    return Node(name, "Cast", (source,), (result,), {"to": element})
