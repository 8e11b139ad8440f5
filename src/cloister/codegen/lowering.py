"""From a graph to a list of C functions: what every family of operators uses.

A family (`lower_*.py`) is a table from operators to functions that take the state here and a node,
and add layers. A layer becomes one C function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cloister.codegen.loop_nest import nest
from cloister.codegen.views import Buffer, Shape, View, channels_last, dense
from cloister.errors import UnsupportedError
from cloister.graph.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Layer:
    """One C function.

    title      what it computes, for the comment above it
    name       a word for its C name
    constants  named numbers
    reads      parameters that are read; writes: those that are written
    uses       files of c/ that its body calls
    """

    title: str
    name: str
    constants: Mapping[str, int]
    reads: Mapping[str, View]
    writes: Mapping[str, View]
    body: Sequence[str]
    uses: Sequence[str] = ()


@dataclass
class Lowering:
    """The graph being lowered: the view of every value that is known, and the layers so far."""

    graph: Graph
    layers: list[Layer] = field(default_factory=list)
    weights: dict[Buffer, np.ndarray] = field(default_factory=dict)
    _views: dict[str, View] = field(default_factory=dict)
    _absorbed: set[str] = field(default_factory=set)

    def shape(self, value: str) -> Shape:
        """Sizes of a value."""
        return tuple(1 if size is None else size for size in self.graph.types[value].shape)

    def dtype(self, value: str) -> np.dtype:
        """Element type of a value."""
        return self.graph.types[value].dtype

    def is_constant(self, value: str) -> bool:
        """Whether a value is a weight."""
        return value in self.graph.constants

    def constant(self, node: Node, at: int) -> np.ndarray | None:
        """A constant input; None where it is absent.

        Raises   UnsupportedError when it is computed
        """
        if at >= len(node.inputs) or not node.inputs[at]:
            return None
        if node.inputs[at] not in self.graph.constants:
            raise UnsupportedError(
                f"node {node.name!r} ({node.op}): input {at} is computed; it has to be a constant"
            )
        return self.graph.constants[node.inputs[at]]

    def view(self, value: str) -> View:
        """A value that a layer reads, as it lies in memory."""
        if value not in self._views:
            self._views[value] = self.weight(self.graph.constants[value])
        return self._views[value]

    def has(self, value: str) -> bool:
        """Whether a value can be read by the next layer."""
        return value in self._views or self.is_constant(value)

    def weight(self, array: np.ndarray) -> View:
        """An array as a part of the packed weights."""
        view = dense(array.dtype, array.shape)
        self.weights[view.buffer] = np.ascontiguousarray(array)
        return view

    def define(self, value: str, view: View) -> None:
        """State where a value lies."""
        self._views[value] = view

    def new(self, value: str, order: Sequence[int] | None = None) -> View:
        """Memory for a value, its axes in this order."""
        view = dense(self.dtype(value), self.shape(value), order)
        self.define(value, view)
        return view

    def add(self, layer: Layer) -> None:
        """The next layer."""
        self.layers.append(layer)

    def only_reader(self, value: str) -> Node | None:
        """The node that alone reads a value; None where there is another reader."""
        if value in self.graph.outputs:
            return None
        readers = [node for node in self.graph.nodes if value in node.inputs]
        if len(readers) != 1 or readers[0].inputs.count(value) != 1:
            return None
        return readers[0]

    def absorb(self, node: Node) -> None:
        """Mark a node as computed by the layer of another one."""
        self._absorbed.add(node.name)

    def is_absorbed(self, node: Node) -> bool:
        """Whether the layer of another node computes this one."""
        return node.name in self._absorbed

    def in_order(self, view: View, order: Sequence[int] | None = None) -> View:
        """The view itself, or a copy whose axes lie in this order without gaps."""
        if view.is_dense(order):
            return view
        made = dense(view.buffer.dtype, view.shape, order)
        self.copy(view, made, "reorder")
        return made

    def image(self, value: str) -> View:
        """An image (N, C, ...), channels-last."""
        return self.in_order(self.view(value), channels_last(len(self.shape(value))))

    def copy(self, source: View, target: View, title: str) -> None:
        """Add a layer that copies."""
        self.add(copy_layer(title, [("x", source, target)], target.buffer))


def copy_layer(
    title: str,
    parts: Sequence[tuple[str, View, View]],
    buffer: Buffer,
    *,
    fill: float = 0.0,
    filled: Sequence[View] = (),
) -> Layer:
    """Copy each part (parameter, from, to), and set others; all targets are parts of one buffer."""
    body: list[str] = []
    constants: dict[str, int] = {}
    targets = [(target, name, source) for name, source, target in parts]
    targets += [(target, "", target) for target in filled]
    for at, (target, name, source) in enumerate(targets):
        views = {"y": target, name: source}
        loops = nest(views, letter=f"i{at}_" if len(targets) > 1 else "i")
        offset = f"{target.start} + " if target.start else ""
        number = literal(fill) if buffer.dtype == np.float32 else integer_literal(int(fill))
        value = f"{name}[{loops.index(name)}]" if name else number
        body += loops.wrap([f"y[{offset}{loops.index('y')}] = {value};"])
        constants |= loops.constants()
    whole = View(buffer, (buffer.elements,), (1,))
    reads = {name: source for name, source, _ in parts}
    return Layer(title, "copy", constants, reads, {"y": whole}, body)


def reshaped(low: Lowering, view: View, shape: Shape) -> View:
    """A view with another shape, of a copy where the view itself has none."""
    found = view.reshaped(shape)
    if found is None:
        found = low.in_order(view).reshaped(shape)
    if found is None:
        raise UnsupportedError(f"{view.shape} cannot become {shape}; the model is damaged")
    return found


def literal(value: float) -> str:
    """A float32 as a C expression."""
    number = np.float32(value)
    if np.isnan(number):
        return "NOT_A_NUMBER"
    if np.isinf(number):
        return "POSITIVE_INFINITY" if number > 0 else "-POSITIVE_INFINITY"
    return f"{float(number)!r}f"


def integer_literal(value: int) -> str:
    """A 64-bit integer as a C expression: a constant of C has no sign, so -2^63 is none."""
    return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"


def of_type(node: Node, view: View, *names: str) -> View:
    """The view, if its elements have one of these types.

    Raises   UnsupportedError
    """
    if view.buffer.dtype.name not in (names or ("float32",)):
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}): computes with {view.buffer.dtype.name}; convert the "
            "model to float32"
        )
    return view


def words(*nodes: Node) -> str:
    """What a layer computes: the operators and names of its nodes."""
    return ", then ".join(f"{node.op} {node.name}" for node in nodes)
