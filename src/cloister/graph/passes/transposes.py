"""The pass that moves transpositions behind elementwise nodes, where they meet and cancel.

Channels-last frameworks export an image network with a pair of transpositions around every
convolution; between two pairs lie a bias, a normalisation or an activation.
"""

from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import integers
from cloister.graph.passes.rewrite import Rewrite

UNARY = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Clip", "Cast", "Elu", "Erf")
BINARY = ("Add", "Sub", "Mul", "Div")


def fold_transposes(graph: Graph) -> Graph:
    """Transpositions behind elementwise nodes with constants; neighbours that cancel removed."""
    while True:
        rewrite = Rewrite(graph)
        # Every node once in a round: what a round has changed has no types before it ends.
        changes = [_step(rewrite, node) for node in graph.nodes]
        if not any(changes):
            return graph
        graph = rewrite.finish()


def _step(rewrite: Rewrite, node: Node) -> bool:
    """Change a node if it can be, and say whether it was."""
    graph = rewrite.graph
    if not rewrite.is_untouched(node):
        return False
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.outputs[0] in rewrite.captured:
        return False
    at = next((i for i, v in enumerate(node.inputs[:2]) if _permutation(graph, rewrite, v)), None)
    if at is None:
        return False
    value = node.inputs[at]
    before = rewrite.maker(value)
    permutation = _permutation(graph, rewrite, value)
    if before is None or permutation is None or not rewrite.is_untouched(before):
        return False
    if node.op == "Transpose":
        return _joined(rewrite, before, node, permutation)
    if node.op in BINARY and len(node.inputs) == 2 and node.inputs[0] != node.inputs[1]:
        partner = rewrite.maker(node.inputs[1 - at])
        if partner is not None and _permutation(graph, rewrite, node.inputs[1 - at]) == permutation:
            return _moved_pair(rewrite, before, partner, node)
    others = _moved_constants(rewrite, node, at, permutation)
    if others is None or not rewrite.read_once(value):
        return False
    early = rewrite.name(f"{node.outputs[0]}_early")
    inputs = (*others[:at], before.inputs[0], *others[at:])
    moved = replace(node, inputs=inputs, outputs=(early,))
    late = replace(before, inputs=(early,), outputs=node.outputs)
    rewrite.swap([before, node], [moved, late])
    return True


def _moved_pair(rewrite: Rewrite, before: Node, partner: Node, node: Node) -> bool:
    """An operation on two values transposed alike; with one reader fewer, one of them goes."""
    types = rewrite.graph.types
    alike = types.get(before.outputs[0]) == types.get(partner.outputs[0])
    if not alike or not rewrite.is_untouched(partner):
        return False
    if not (rewrite.read_once(before.outputs[0]) or rewrite.read_once(partner.outputs[0])):
        return False
    early = rewrite.name(f"{node.outputs[0]}_early")
    first = node.inputs[0] == before.outputs[0]
    inputs = (before.inputs[0], partner.inputs[0])
    moved = replace(node, inputs=inputs if first else inputs[::-1], outputs=(early,))
    name = rewrite.name(f"{node.name}_transpose")
    late = replace(before, name=name, inputs=(early,), outputs=node.outputs)
    rewrite.swap([node], [moved, late])
    return True


def _permutation(graph: Graph, rewrite: Rewrite, value: str) -> tuple[int, ...] | None:
    maker = rewrite.maker(value)
    if maker is None or maker.op != "Transpose" or maker.domain not in ("", "ai.onnx"):
        return None
    known = graph.types.get(value)
    if known is None:
        return None
    return integers(maker, "perm") or tuple(reversed(range(len(known.shape))))


def _joined(rewrite: Rewrite, before: Node, node: Node, first: tuple[int, ...]) -> bool:
    """Two transpositions as one, or as none."""
    second = _permutation(rewrite.graph, rewrite, node.outputs[0])
    if second is None:
        return False
    both = tuple(first[axis] for axis in second)
    source = before.inputs[0]
    if both != tuple(range(len(both))):
        rewrite.swap([node], [replace(node, inputs=(source,), attributes={"perm": both})])
        return True
    if node.outputs[0] in rewrite.graph.outputs:
        identity = Node(node.name, "Identity", (source,), node.outputs)
        rewrite.swap([node], [identity])
        return True
    rewrite.rename_input(node.outputs[0], source)
    return True


def _moved_constants(
    rewrite: Rewrite, node: Node, at: int, permutation: tuple[int, ...]
) -> list[str] | None:
    """A node's other inputs once it stands before the transposition; None if it cannot."""
    others = [value for i, value in enumerate(node.inputs) if i != at]
    if node.op == "Pad" and at == 0 and len(node.inputs) in (2, 3):
        pads = rewrite.graph.constants.get(node.inputs[1])
        if pads is None or pads.size != 2 * len(permutation):
            return None
        sides = pads.reshape(2, -1)[:, np.argsort(permutation)]
        return [rewrite.constant(f"{others[0]}_moved", sides.reshape(-1)), *others[1:]]
    if node.op in UNARY and at == 0:
        return others
    if node.op not in BINARY or len(others) != 1 or others[0] not in rewrite.graph.constants:
        return None
    array = rewrite.graph.constants[others[0]]
    types = rewrite.graph.types
    if types.get(node.outputs[0]) != types.get(node.inputs[at]) or array.ndim > len(permutation):
        return None
    if array.size == 1:
        return others
    full = array.reshape((1,) * (len(permutation) - array.ndim) + array.shape)
    moved = np.ascontiguousarray(full.transpose(np.argsort(permutation)))
    return [rewrite.constant(f"{others[0]}_moved", moved)]
