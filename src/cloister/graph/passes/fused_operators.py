"""The pass that takes ONNX Runtime's own fused linear operators apart into ONNX's.

Files that ONNX Runtime wrote after optimising a model have them. In place of one is the linear
operator, then what is added to its result, then the activation.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integer, number
from cloister.graph.passes.padding import with_explicit_padding
from cloister.graph.passes.rewrite import Rewrite

FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
ACTIVATIONS = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"),
}  # fmt: skip
"""Activations of these operators, and the names of their numbers."""
CLIP_TAKES_INPUTS = 11


def expand_fused(graph: Graph) -> Graph:
    """FusedConv, FusedGemm and FusedMatMul with one constant factor as ONNX's operators."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.domain != "com.microsoft" or node.op not in FUSED:
            continue
        if sum(value in graph.constants for value in node.inputs[:2]) != 1:
            continue
        made = _product(rewrite, node) if node.op == "FusedMatMul" else _activated(rewrite, node)
        if made:
            rewrite.swap([node], made)
    expanded = rewrite.finish()
    return graph if expanded is graph else with_explicit_padding(expanded)


def _activated(rewrite: Rewrite, node: Node) -> list[Node]:
    """A convolution or a Gemm, what is added to it, and its activation; empty for another one."""
    name = node.attributes.get("activation", "")
    if name and name not in ACTIVATIONS:
        return []
    kept = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    linear = replace(node, op=FUSED[node.op], domain="", inputs=node.inputs[:3], attributes=kept)
    made = [linear]
    if any(node.inputs[3:]):
        _append(rewrite, made, "Add", (node.inputs[3],), {})
    if name:
        numbers = _numbers(node, len(ACTIVATIONS[str(name)]))
        named = dict(zip(ACTIVATIONS[str(name)], numbers, strict=False))
        inputs: list[str] = []
        if name == "Clip" and rewrite.graph.opset >= CLIP_TAKES_INPUTS:
            inputs = [
                rewrite.constant(f"{node.name}_{key}", np.array(value, np.float32))
                for key, value in named.items()
            ]
            named = {}
        _append(rewrite, made, str(name), inputs, named)
    return made


def _numbers(node: Node, count: int) -> list[float]:
    """The numbers of an activation: of FusedConv in a list, of FusedGemm by name."""
    listed = node.attributes.get("activation_params")
    if isinstance(listed, Sequence):
        return [float(value) for value in listed][:count]
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    return [number(node, name, 0.0) for name in names if name in node.attributes][:count]


def _append(
    rewrite: Rewrite, nodes: list[Node], op: str, inputs: Sequence[str], numbers: dict[str, float]
) -> None:
    """A node behind the last one, which makes its value."""
    last = nodes[-1]
    value = rewrite.name(f"{last.outputs[0]}_before")
    nodes[-1] = replace(last, outputs=(value,))
    name = rewrite.name(f"{nodes[0].name}_{op.lower()}")
    nodes.append(Node(name, op, (value, *inputs), last.outputs, dict(numbers)))


def _product(rewrite: Rewrite, node: Node) -> list[Node]:
    """A matrix product of factors of which the last two axes are turned; empty for others."""
    graph = rewrite.graph
    if integer(node, "transBatchA", 0) or integer(node, "transBatchB", 0):
        return []
    made, inputs = [], []
    for value, flag in zip(node.inputs, ("transA", "transB"), strict=True):
        factor = value
        rank = len(graph.sizes(value) or ()) if value not in graph.constants else 0
        turned = bool(integer(node, flag, 0))
        if value in graph.constants:
            array = graph.constants[value]
            if array.dtype != np.float32:
                return []
            array = array * np.float32(number(node, "alpha", 1.0))
            array = array.swapaxes(-1, -2) if turned and array.ndim > 1 else array
            factor = rewrite.constant(f"{node.name}_{value}", np.ascontiguousarray(array))
        elif turned and not rank:
            return []
        elif turned and rank > 1:
            factor = rewrite.name(f"{node.name}_turned")
            order = (*range(rank - 2), rank - 1, rank - 2)
            name = rewrite.name(f"{node.name}_transpose")
            made.append(Node(name, "Transpose", (value,), (factor,), {"perm": order}))
        inputs.append(factor)
    return [*made, Node(node.name, "MatMul", tuple(inputs), node.outputs)]
