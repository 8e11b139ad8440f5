"""Some nodes of a graph as a graph of their own."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from cloister.graph.captures import captured_values, every_node
from cloister.graph.graph import Graph, Node

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def part(
    graph: Graph, nodes: tuple[Node, ...], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Graph:
    """Some nodes as a graph, which has nothing of the others."""
    read = {*outputs, *(value for node in nodes for value in reads(node))}
    constants = {name: array for name, array in graph.constants.items() if name in read}
    there = {*inputs, *constants, *made_by(nodes)}
    used = {one.domain for one in every_node(nodes)}
    return replace(
        graph,
        nodes=nodes,
        inputs=inputs,
        outputs=outputs,
        constants=constants,
        types={name: known for name, known in graph.types.items() if name in there},
        opaque={name: known for name, known in graph.opaque.items() if name in there},
        domains={name: version for name, version in graph.domains.items() if name in used},
        joins={name: axis for name, axis in graph.joins.items() if name in outputs},
        defaults={name: array for name, array in graph.defaults.items() if name in inputs},
    )


def reads(node: Node) -> tuple[str, ...]:
    """The values that a node reads, in its subgraphs too."""
    return tuple(value for value in (*node.inputs, *sorted(captured_values(node))) if value)


def made_by(nodes: Iterable[Node]) -> frozenset[str]:
    """The values that these nodes make."""
    return frozenset(value for node in nodes for value in node.outputs if value)


def origins(graph: Graph) -> Callable[[str], str]:
    """From a value to the one that it is in another shape."""
    makers = {value: node for node in graph.nodes for value in node.outputs if value}

    def origin(value: str) -> str:
        node = makers.get(value)
        while node is not None and node.op in RESHAPES:
            value = node.inputs[0]
            node = makers.get(value)
        return value

    return origin
