"""Values that the subgraphs of a node (If, Loop, Scan) read from outside."""

from collections.abc import Iterator

import onnx

from cloister.graph.graph import Node


def captured_values(node: Node) -> frozenset[str]:
    """Outer values read by a node's subgraphs; empty for a node without any."""
    found: set[str] = set()
    for value in node.attributes.values():
        for subgraph in _subgraphs(value):
            found |= _free_values(subgraph)
    return frozenset(found)


def _subgraphs(value: object) -> Iterator[onnx.GraphProto]:
    if isinstance(value, onnx.GraphProto):
        yield value
    elif isinstance(value, onnx.AttributeProto):
        if value.type == onnx.AttributeProto.GRAPH:
            yield value.g
        yield from value.graphs


def _free_values(graph: onnx.GraphProto) -> set[str]:
    made = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    made.update(name for node in graph.node for name in node.output)
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(name for name in node.input if name)
        for attribute in node.attribute:
            for subgraph in _subgraphs(attribute):
                read |= _free_values(subgraph)
    return read - made
