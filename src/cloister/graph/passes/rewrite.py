"""A graph being changed by a pass: nodes and constants that can be replaced, then a new Graph."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from cloister.graph.captures import captured_values
from cloister.graph.graph import Graph, Node
from cloister.graph.inference import with_types


class Rewrite:
    """Working copy of a graph; the graph itself is never changed."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = list(graph.nodes)
        self.constants = dict(graph.constants)
        self._changed = False
        self._original = frozenset(id(node) for node in graph.nodes)
        self._taken = {node.name for node in graph.nodes} | set(graph.constants)
        self._taken.update(v for node in graph.nodes for v in (*node.inputs, *node.outputs))
        self._taken.update(graph.inputs)
        # A value that a subgraph reads keeps its name: subgraphs are not rewritten.
        self.captured = frozenset(v for node in graph.nodes for v in captured_values(node))
        self._readers: dict[str, int] = {}
        self._maker = {value: node for node in graph.nodes for value in node.outputs if value}
        for value in (*graph.outputs, *self.captured, *(v for n in graph.nodes for v in n.inputs)):
            self._readers[value] = self._readers.get(value, 0) + 1

    def maker(self, value: str) -> Node | None:
        """The node that makes a value now."""
        return self._maker.get(value)

    def is_untouched(self, node: Node) -> bool:
        """Whether a node is in the graph as it was, and its types are therefore known."""
        return id(node) in self._original and any(node is one for one in self.nodes)

    def read_once(self, value: str) -> bool:
        """Whether exactly one node of the original graph reads a value, and no caller does."""
        return self._readers.get(value, 0) == 1

    def name(self, base: str) -> str:
        """A name that no node or value has."""
        name, count = base, 1
        while name in self._taken:
            name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name

    def constant(self, base: str, array: np.ndarray) -> str:
        """A new constant; its name."""
        name = self.name(base)
        self.set_constant(name, array)
        return name

    def set_constant(self, name: str, array: np.ndarray) -> None:
        """Give a value of the graph as a constant."""
        frozen = np.array(array)
        frozen.setflags(write=False)
        self.constants[name] = frozen
        self._changed = True

    def swap(self, old: Iterable[Node], new: Iterable[Node]) -> None:
        """Replace nodes by others, in the place of the last of the old ones."""
        gone, added = list(old), list(new)
        last = max(i for i, node in enumerate(self.nodes) if any(node is one for one in gone))
        before = [n for n in self.nodes[:last] if not any(n is one for one in gone)]
        self.nodes = [*before, *added, *self.nodes[last + 1 :]]
        for node in added:
            self._maker.update({value: node for value in node.outputs if value})
        self._changed = True

    def rename_input(self, old: str, new: str) -> None:
        """Let every node read `new` instead of `old`."""
        for i, node in enumerate(self.nodes):
            if old in node.inputs:
                inputs = tuple(new if value == old else value for value in node.inputs)
                self.nodes[i] = replace(node, inputs=inputs)
                for value in node.outputs:
                    self._maker[value] = self.nodes[i]
        self._readers[new] = self._readers.get(new, 0) + self._readers.pop(old, 0)
        self._changed = True

    def finish(self) -> Graph:
        """The new graph, typed; the old one if nothing changed."""
        if not self._changed:
            return self.graph
        constants = self.constants
        nodes = tuple(n for n in self.nodes if not any(v in constants for v in n.outputs))
        return with_types(without_unused(replace(self.graph, nodes=nodes, constants=constants)))


def without_unused(graph: Graph) -> Graph:
    """The graph without nodes and constants that no output depends on."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(value for value in node.inputs if value)
            needed.update(captured_values(node))
    constants = {name: array for name, array in graph.constants.items() if name in needed}
    needed.update(graph.inputs)
    needed.update(value for node in kept for value in node.outputs)
    return replace(
        graph,
        nodes=tuple(reversed(kept)),
        constants=constants,
        types={name: known for name, known in graph.types.items() if name in needed},
        opaque={name: known for name, known in graph.opaque.items() if name in needed},
    )
