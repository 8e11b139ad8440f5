"""Operators that move values: most of them are other views of the same memory."""

from collections.abc import Callable

from cloister.codegen.lowering import Lowering, copy_layer, words
from cloister.codegen.views import Shape, View
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import integer, integers
from cloister.graph.ops.tensor_ops import NO_END

Lower = Callable[[Lowering, Node], None]


def identity(low: Lowering, node: Node) -> None:
    """The input; dropout is this at inference."""
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError(f"node {node.name!r} ({node.op}): its mask is not compiled")
    low.define(node.outputs[0], low.view(node.inputs[0]))


def reshape(low: Lowering, node: Node) -> None:
    """The same elements in row-major order, with the shape that inference found."""
    view, shape = low.view(node.inputs[0]), low.shape(node.outputs[0])
    low.define(node.outputs[0], reshaped(low, view, shape))


def reshaped(low: Lowering, view: View, shape: Shape) -> View:
    """A view with another shape, of a copy where the view itself has none."""
    found = view.reshaped(shape)
    if found is None:
        found = low.in_order(view).reshaped(shape)
    if found is None:
        raise UnsupportedError(f"{view.shape} cannot become {shape}; the model is damaged")
    return found


def transpose(low: Lowering, node: Node) -> None:
    """Axes in another order."""
    view = low.view(node.inputs[0])
    axes = integers(node, "perm") or tuple(reversed(range(len(view.shape))))
    low.define(node.outputs[0], view.transposed(axes))


def expand(low: Lowering, node: Node) -> None:
    """Broadcast to a shape."""
    low.define(node.outputs[0], low.view(node.inputs[0]).broadcast(low.shape(node.outputs[0])))


def slice_(low: Lowering, node: Node) -> None:
    """Every step-th row from start to end along axes."""
    view = low.view(node.inputs[0])
    rank = len(view.shape)
    starts, ends, axes, steps = (
        _numbers(low, node, at, name)
        for at, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[at] if axes else at) % rank
        step = steps[at] if steps else 1
        rows = range(view.shape[axis])[_bounds(start, end, step, view.shape[axis])]
        view = view.rows(axis, rows.start, len(rows), rows.step)
    low.define(node.outputs[0], view)


def split(low: Lowering, node: Node) -> None:
    """Consecutive rows of an axis."""
    view = low.view(node.inputs[0])
    axis = integer(node, "axis", 0) % len(view.shape)
    start = 0
    for name in node.outputs:
        rows = low.shape(name)[axis]
        low.define(name, view.rows(axis, start, rows))
        start += rows


def concat(low: Lowering, node: Node) -> None:
    """Values one after the other along an axis."""
    views = [low.view(name) for name in node.inputs]
    y = low.new(node.outputs[0], views[0].order)
    axis = integer(node, "axis", 0) % len(y.shape)
    parts, start = [], 0
    for at, view in enumerate(views):
        parts.append((f"x{at}", view, y.rows(axis, start, view.shape[axis])))
        start += view.shape[axis]
    low.add(copy_layer(words(node), parts, y.buffer))


def _numbers(low: Lowering, node: Node, at: int, name: str) -> tuple[int, ...]:
    """Integers that older operator sets pass as an attribute, newer ones as a constant."""
    given = low.constant(node, at)
    return integers(node, name) if given is None else tuple(int(v) for v in given.reshape(-1))


def _bounds(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's slice as Python's: a negative number counts from the back, once."""
    stop: int | None = max(end + size if end < 0 else end, -1 if step < 0 else 0)
    if stop is not None and step < 0 and (stop < 0 or end in NO_END):
        stop = None
    return slice(max(start + size, 0) if start < 0 else start, stop, step)


TABLE: dict[str, Lower] = {
    "Identity": identity,
    "Dropout": identity,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Transpose": transpose,
    "Expand": expand,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
}
