"""Nodes one behind the other that take the place of a linear node."""

from collections.abc import Sequence

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.passes.rewrite import Rewrite


class NodeSequence:
    """Nodes from what a linear node reads to what it makes; the linear one has its name."""

    def __init__(self, rewrite: Rewrite, node: Node) -> None:
        self.rewrite = rewrite
        self._node = node
        self._value = node.inputs[0]
        self._nodes: list[Node] = []

    @property
    def graph(self) -> Graph:
        """The graph as it was."""
        return self.rewrite.graph

    def linear(self, op: str, *inputs: str, **attributes: object) -> None:
        """The linear node, with these weights."""
        self._add(self._node.name, op, inputs, attributes)

    def then(self, op: str, *constants: np.ndarray, **attributes: object) -> None:
        """A node that reads constants besides."""
        name = self.rewrite.name(f"{self._node.name}_{op.lower()}")
        inputs = [self.rewrite.constant(f"{name}_{i}", one) for i, one in enumerate(constants)]
        self._add(name, op, inputs, attributes)

    def reshape(self, target: Sequence[int]) -> None:
        """A Reshape to these sizes, of which one may be -1: what is left."""
        self.then("Reshape", np.array(target, np.int64))

    def replace(self) -> list[Node]:
        """Put the nodes into the graph; they make the value that the linear node made."""
        last = self._nodes[-1]
        made = Node(last.name, last.op, last.inputs, self._node.outputs, last.attributes)
        self._nodes[-1] = made
        self.rewrite.swap([self._node], self._nodes)
        return self._nodes

    def _add(
        self, name: str, op: str, inputs: Sequence[str], attributes: dict[str, object]
    ) -> None:
        made = self.rewrite.name(f"{name}_value")
        self._nodes.append(Node(name, op, (self._value, *inputs), (made,), attributes))
        self._value = made
