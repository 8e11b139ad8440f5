"""The branch of an If as nodes of the graph around it."""

from collections.abc import Mapping
from dataclasses import replace

from cloister.graph.graph import Node, Subgraph
from cloister.graph.passes.rewrite import Rewrite


def inlined(rewrite: Rewrite, node: Node, branch: Subgraph) -> list[Node]:
    """The nodes of a branch under names of their own, which make the outputs of the If.

    The constants of the branch become constants of the graph.
    """
    names: dict[str, str] = {}
    for value, array in branch.constants.items():
        names[value] = rewrite.constant(value, array)
    for inner in branch.nodes:
        names.update((value, rewrite.name(value)) for value in inner.outputs if value)
    nodes = []
    for inner in branch.nodes:
        name = rewrite.name(inner.name or f"{node.name}_{inner.op.lower()}")
        nodes.append(replace(_renamed(inner, names), name=name))
    for (value, _), made in zip(branch.outputs, node.outputs, strict=True):
        if made:
            name = rewrite.name(f"{node.name}_output")
            nodes.append(Node(name, "Identity", (names.get(value, value),), (made,)))
    return nodes


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    """A node that reads and makes values under other names, in its bodies too."""
    return replace(
        node,
        inputs=tuple(names.get(value, value) for value in node.inputs),
        outputs=tuple(names.get(value, value) for value in node.outputs),
        attributes={key: _renamed_body(value, names) for key, value in node.attributes.items()},
    )


def _renamed_body(value: object, names: Mapping[str, str]) -> object:
    """An attribute whose bodies read values of the graph around them under other names."""
    if isinstance(value, tuple):
        return tuple(_renamed_body(one, names) for one in value)
    if not isinstance(value, Subgraph):
        return value
    own = {*(name for name, _ in value.inputs), *value.constants}
    own.update(made for node in value.nodes for made in node.outputs)
    outer = {old: new for old, new in names.items() if old not in own}
    return replace(
        value,
        nodes=tuple(_renamed(node, outer) for node in value.nodes),
        outputs=tuple((outer.get(name, name), known) for name, known in value.outputs),
    )
