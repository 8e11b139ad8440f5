"""Nodes one behind the other that take the place of a node, most often of a linear one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.passes.rewrite import Rewrite

Size = int | None
SLICE_TAKES_INPUTS, PAD_TAKES_INPUTS = 10, 11
"""Operator sets from which on Slice and Pad take as inputs what were attributes before."""


class Chain:
    """Nodes from a value that a node reads to what it makes; the linear one has its name.

    `shape` is that of the value that the last node makes, as far as the methods are told; what
    changes nothing is left out. The size of a free axis is None.
    """

    def __init__(
        self, rewrite: Rewrite, node: Node, value: str = "", shape: Sequence[Size] = ()
    ) -> None:
        self.rewrite = rewrite
        self.shape = tuple(shape)
        self._node = node
        self._value = value or node.inputs[0]
        self._nodes: list[Node] = []

    @property
    def graph(self) -> Graph:
        """The graph as it was."""
        return self.rewrite.graph

    def constant(self, what: str, array: np.ndarray) -> str:
        """A new constant of the node; its name."""
        return self.rewrite.constant(f"{self._node.name}_{what}", np.ascontiguousarray(array))

    def linear(self, op: str, *inputs: str, **attributes: object) -> None:
        """The linear node, with these weights."""
        self._add(self._node.name, op, inputs, attributes)

    def then(self, op: str, *constants: np.ndarray, **attributes: object) -> None:
        """A node that reads constants besides."""
        name = self.rewrite.name(f"{self._node.name}_{op.lower()}")
        inputs = [self.rewrite.constant(f"{name}_{i}", one) for i, one in enumerate(constants)]
        self._add(name, op, inputs, attributes)

    def reshape(self, target: Sequence[int]) -> None:
        """A Reshape to these sizes: 0 is the size there was, one may be -1, what is left."""
        kept = [self.shape[i] if size == 0 else size for i, size in enumerate(target)]
        shape = tuple(None if size == -1 else size for size in kept)
        if shape != self.shape or -1 in target:
            self.then("Reshape", np.array(target, np.int64))
            self.shape = shape

    def transpose(self, order: Sequence[int]) -> None:
        """Axes in another order."""
        if tuple(order) != tuple(range(len(self.shape))):
            self.then("Transpose", perm=tuple(order))
            self.shape = tuple(self.shape[axis] for axis in order)

    def pad(self, axis: int, before: int, behind: int) -> None:
        """Zeros at both ends of an axis."""
        if not before and not behind:
            return
        sides = np.zeros((2, len(self.shape)), np.int64)
        sides[:, axis] = before, behind
        if self.graph.opset < PAD_TAKES_INPUTS:
            self.then("Pad", pads=tuple(sides.reshape(-1).tolist()))
        else:
            self.then("Pad", sides.reshape(-1))
        self._resize(axis, self.known(axis) + before + behind)

    def slice(self, axis: int, start: int, stop: int) -> None:
        """The rows of an axis from `start` to `stop`."""
        if (start, stop) == (0, self.shape[axis]):
            return
        if self.graph.opset < SLICE_TAKES_INPUTS:
            self.then("Slice", starts=(start,), ends=(stop,), axes=(axis,))
        else:
            self.then("Slice", *(np.array([number]) for number in (start, stop, axis)))
        self._resize(axis, stop - start)

    def gather(self, axis: int, rows: np.ndarray) -> None:
        """Rows of an axis, whose place the axes of `rows` take."""
        self.then("Gather", rows, axis=axis)
        self.shape = (*self.shape[:axis], *rows.shape, *self.shape[axis + 1 :])

    def replace(self) -> list[Node]:
        """Put the nodes into the graph; they make the value that the node made."""
        self._nodes[-1] = replace(self._nodes[-1], outputs=self._node.outputs)
        self.rewrite.swap([self._node], self._nodes)
        return self._nodes

    def known(self, axis: int) -> int:
        """The size of an axis that is not free."""
        return self.shape[axis] or 0

    def _resize(self, axis: int, size: int) -> None:
        self.shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])

    def _add(
        self, name: str, op: str, inputs: Sequence[str], attributes: dict[str, object]
    ) -> None:
        made = self.rewrite.name(f"{name}_value")
        self._nodes.append(Node(name, op, (self._value, *inputs), (made,), attributes))
        self._value = made
