"""Passes that compute products of other floating-point types in float32, between casts.

Every float16 and bfloat16 number is a float32 number, and ONNX Runtime computes these products in
float32, too: the result is rounded to the type it had. Of float64 the same would lose half of the
digits, which is less than becoming an integer loses: it is for nodes that a worker computes.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np

from cloister.graph.element_types import element_number
from cloister.graph.graph import LINEAR_OPS, Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS
from cloister.graph.passes.rewrite import Rewrite

HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
DOUBLES = (np.dtype(np.float64),)
PRODUCTS = (*LINEAR_OPS, "Einsum")
FLOAT = element_number(np.dtype(np.float32))


def widen_halves(graph: Graph) -> Graph:
    """Products of half-precision values with constants, in float32."""
    return _in_float32(graph, HALVES)


def narrow_doubles(graph: Graph) -> Graph:
    """Products of float64 values with constants, in float32.

    Error    2^-24 of each factor
    """
    return _in_float32(graph, DOUBLES)


def _in_float32(graph: Graph, types: tuple[np.dtype, ...]) -> Graph:
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op not in PRODUCTS or node.domain not in STANDARD_DOMAINS:
            continue
        known = graph.types.get(node.outputs[0])
        constant = sum(value in graph.constants for value in node.inputs[:2])
        if known is not None and known.dtype in types and constant == 1:
            _recast(rewrite, node, element_number(known.dtype))
    return rewrite.finish()


def _recast(rewrite: Rewrite, node: Node, element: int) -> None:
    """Replace a node by itself in float32, between casts."""
    constants = rewrite.graph.constants
    casts, inputs = [], []
    for value in node.inputs:
        name = value
        if value in constants:
            with np.errstate(over="ignore"):
                array = constants[value].astype(np.float32)
            name = rewrite.constant(f"{value}_float32", array)
        elif value:
            name = rewrite.name(f"{value}_float32")
            casts.append(_cast(rewrite, node, value, name, FLOAT))
        inputs.append(name)
    product = rewrite.name(f"{node.outputs[0]}_float32")
    made = replace(node, inputs=tuple(inputs), outputs=(product,))
    last = _cast(rewrite, node, product, node.outputs[0], element)
    rewrite.swap([node], [*casts, made, last])


def _cast(rewrite: Rewrite, node: Node, source: str, result: str, element: int) -> Node:
    name = rewrite.name(f"{node.name}_cast")
    return Node(name, "Cast", (source,), (result,), {"to": element})
