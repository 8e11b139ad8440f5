"""Nodes one behind another that a pass puts in the place of one node."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from cloister.graph.graph import Node
from cloister.graph.passes.rewrite import Rewrite

Size = int | None
SLICE_TAKES_INPUTS, PAD_TAKES_INPUTS = 10, 11
"""Operator sets from which on Slice and Pad take as inputs what were attributes before."""


class Chain:
    """Grows from a value of known shape to the output of the node it replaces.

    The first axis may be free: targets of Reshape keep it as it is.
    """

    def __init__(self, rewrite: Rewrite, node: Node, value: str, shape: Sequence[Size]) -> None:
        self.shape = tuple(shape)
        self._rewrite = rewrite
        self._node = node
        self._value = value
        self._nodes: list[Node] = []

    def reshape(self, *sizes: int) -> None:
        """Other axes behind the first."""
        shape = (self.shape[0], *sizes)
        if shape != self.shape:
            target = self._constant("target", np.array([0, *sizes], np.int64))
            self._append("Reshape", shape, [target])

    def transpose(self, order: Sequence[int]) -> None:
        """Axes in another order."""
        if tuple(order) != tuple(range(len(self.shape))):
            shape = tuple(self.shape[axis] for axis in order)
            self._append("Transpose", shape, attributes={"perm": tuple(order)})

    def pad(self, axis: int, before: int, behind: int) -> None:
        """Zeros at both ends of an axis."""
        if not before and not behind:
            return
        sides = np.zeros((2, len(self.shape)), np.int64)
        sides[:, axis] = before, behind
        shape = self._resized(axis, self.known(axis) + before + behind)
        if self._rewrite.graph.opset < PAD_TAKES_INPUTS:
            self._append("Pad", shape, attributes={"pads": tuple(sides.reshape(-1).tolist())})
        else:
            self._append("Pad", shape, [self._constant("pads", sides.reshape(-1))])

    def slice(self, axis: int, start: int, stop: int) -> None:
        """The rows of an axis from `start` to `stop`."""
        if (start, stop) == (0, self.shape[axis]):
            return
        shape = self._resized(axis, stop - start)
        bounds = {"starts": start, "ends": stop, "axes": axis}
        if self._rewrite.graph.opset < SLICE_TAKES_INPUTS:
            self._append("Slice", shape, attributes={k: (v,) for k, v in bounds.items()})
        else:
            inputs = [self._constant(name, np.array([value])) for name, value in bounds.items()]
            self._append("Slice", shape, inputs)

    def gather(self, axis: int, rows: np.ndarray) -> None:
        """Rows of an axis; its place is taken by the axes of `rows`."""
        shape = (*self.shape[:axis], *rows.shape, *self.shape[axis + 1 :])
        self._append("Gather", shape, [self._constant("rows", rows)], {"axis": axis})

    def linear(
        self,
        op: str,
        shape: Sequence[Size],
        weights: np.ndarray,
        bias: np.ndarray | None = None,
        **attributes: object,
    ) -> None:
        """The linear node, which keeps the name of the node that is replaced."""
        inputs = [self._constant("weights", np.ascontiguousarray(weights, np.float32))]
        if bias is not None:
            inputs.append(self._constant("bias", np.asarray(bias, np.float32)))
        self._append(op, shape, inputs, attributes, name=self._node.name)

    def finish(self) -> None:
        """Replace the node."""
        last = replace(self._nodes[-1], outputs=self._node.outputs)
        self._rewrite.swap([self._node], [*self._nodes[:-1], last])

    def known(self, axis: int) -> int:
        """The size of an axis that is not free."""
        return self.shape[axis] or 0

    def _append(
        self,
        op: str,
        shape: Sequence[Size],
        inputs: Sequence[str] = (),
        attributes: Mapping[str, object] = MappingProxyType({}),
        *,
        name: str = "",
    ) -> None:
        base = f"{self._node.name}_{op.lower()}"
        value = self._rewrite.name(f"{base}_value")
        name = name or self._rewrite.name(base)
        self._nodes.append(Node(name, op, (self._value, *inputs), (value,), dict(attributes)))
        self._value, self.shape = value, tuple(shape)

    def _constant(self, what: str, array: np.ndarray) -> str:
        return self._rewrite.constant(f"{self._node.name}_{what}", array)

    def _resized(self, axis: int, size: int) -> tuple[Size, ...]:
        return (*self.shape[:axis], size, *self.shape[axis + 1 :])
