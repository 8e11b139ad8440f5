"""Values that the subgraphs of a node (If, Loop, Scan) read from outside."""

from collections.abc import Iterable, Iterator

from cloister.graph.graph import Node, Subgraph


def subgraphs(node: Node) -> Iterator[Subgraph]:
    """The bodies of a node."""
    for value in node.attributes.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Subgraph):
                yield one


def every_node(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes and all nodes of their bodies, at any depth."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from every_node(body.nodes)


def captured_values(node: Node) -> frozenset[str]:
    """Outer values read by a node's subgraphs; empty for a node without any."""
    return frozenset().union(*map(_free_values, subgraphs(node)))


def _free_values(graph: Subgraph) -> set[str]:
    made = {*(name for name, _ in graph.inputs), *graph.constants}
    made.update(name for node in graph.nodes for name in node.outputs)
    read = {name for name, _ in graph.outputs}
    for node in graph.nodes:
        read.update(name for name in node.inputs if name)
        read |= captured_values(node)
    return read - made
