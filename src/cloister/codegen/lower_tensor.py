"""Operators that move values: most of them are other views of the same memory."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from cloister.codegen.lower_elementwise import cast_view
from cloister.codegen.lowering import Layer, Lowering, copy_layer, of_type, reshaped, words
from cloister.codegen.views import View, dense
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import integer, integers, number
from cloister.graph.ops.tensor_ops import NO_END

Lower = Callable[[Lowering, Node], None]


def identity(low: Lowering, node: Node) -> None:
    """The input; dropout is this at inference."""
    training = low.constant(node, 2)
    is_training = training is not None and bool(training.any())
    if is_training or len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}): is in training mode or gives its mask; export for "
            "inference"
        )
    low.define(node.outputs[0], low.view(node.inputs[0]))


def reshape(low: Lowering, node: Node) -> None:
    """The same elements in row-major order, with the shape that inference found."""
    view, shape = low.view(node.inputs[0]), low.shape(node.outputs[0])
    low.define(node.outputs[0], reshaped(low, view, shape))


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


def pad(low: Lowering, node: Node) -> None:
    """Rows added (or, negative, removed) at both ends of axes."""
    view = low.view(node.inputs[0])
    rank = len(view.shape)
    mode = node.attributes.get("mode", "constant")
    amounts, given = _numbers(low, node, 1, "pads"), low.constant(node, 3)
    axes = range(rank) if given is None else [int(a) % rank for a in given.reshape(-1)]
    if mode not in ("constant", "reflect", "edge", "wrap") or len(amounts) != 2 * len(axes):
        raise UnsupportedError(f"node {node.name!r} (Pad): mode {mode!r} is not compiled")
    fill = low.constant(node, 2)
    value = number(node, "value", 0.0) if fill is None else fill.reshape(-1)[0].item()
    for at, axis in enumerate(axes):
        begin, end = amounts[at], amounts[at + len(axes)]
        kept = view.shape[axis] + min(begin, 0) + min(end, 0)
        view = view.rows(axis, -min(begin, 0), kept)
        begin, end = max(begin, 0), max(end, 0)
        if begin or end:
            view = _padded(low, node, view, axis, begin, end, str(mode), value)
    low.define(node.outputs[0], view)


def _padded(
    low: Lowering, node: Node, x: View, axis: int, begin: int, end: int, mode: str, value: float
) -> View:
    """A copy with rows before and behind those of one axis."""
    size = x.shape[axis]
    if (mode == "reflect" and max(begin, end) >= size) or (
        mode == "wrap" and max(begin, end) > size
    ):
        raise UnsupportedError(
            f"node {node.name!r} (Pad): adds more rows than axis {axis} has; pad twice"
        )
    shape = (*x.shape[:axis], begin + size + end, *x.shape[axis + 1 :])
    y = dense(x.buffer.dtype, shape, x.order)
    sides = {
        "reflect": (x.rows(axis, begin, begin, -1), x.rows(axis, size - 2, end, -1)),
        "edge": (x.rows(axis, 0, begin, 0), x.rows(axis, size - 1, end, 0)),
        "wrap": (x.rows(axis, size - begin, begin), x.rows(axis, 0, end)),
        "constant": (None, None),
    }[mode]
    parts = [("x", x, y.rows(axis, begin, size))]
    for name, source, start, rows in (
        ("before", sides[0], 0, begin), ("behind", sides[1], begin + size, end),
    ):  # fmt: skip
        if rows and source is not None:
            parts.append((name, source, y.rows(axis, start, rows)))
    filled = [
        y.rows(axis, start, rows)
        for source, start, rows in ((sides[0], 0, begin), (sides[1], begin + size, end))
        if rows and source is None
    ]
    low.add(copy_layer(words(node), parts, y.buffer, fill=value, filled=filled))
    return y


def gather(low: Lowering, node: Node) -> None:
    """Rows by index along an axis: a view for constant indices, else a scan of all rows."""
    view = of_type(node, low.view(node.inputs[0]))
    axis = integer(node, "axis", 0) % len(view.shape)
    y = low.shape(node.outputs[0])
    known = low.graph.constants.get(node.inputs[1])
    if known is not None and (found := _chosen_rows(view, axis, known)) is not None:
        low.define(node.outputs[0], reshaped(low, found, y))
        return
    index = of_type(node, low.view(node.inputs[1]), "int32", "int64")
    if index.buffer.dtype == np.int32:
        index = cast_view(low, index, np.dtype(np.int64), words(node))
    index, table = low.in_order(index), low.in_order(view)
    names = {
        "OUTER": math.prod(view.shape[:axis]), "ROWS": view.shape[axis],
        "INNER": math.prod(view.shape[axis + 1 :]), "COUNT": index.elements,
    }  # fmt: skip
    call = f"table_rows(table, index, y, {', '.join(names)});"
    reads, writes = {"table": table, "index": index}, {"y": low.new(node.outputs[0])}
    low.add(Layer(words(node), "gather", names, reads, writes, [call], ("gather.c",)))


def _chosen_rows(view: View, axis: int, index: np.ndarray) -> View | None:
    """Rows at equal distances, as a view; None for any other indices."""
    rows = [int(one) % view.shape[axis] for one in index.reshape(-1)]
    steps = {b - a for a, b in pairwise(rows)}
    inside = all(-view.shape[axis] <= one < view.shape[axis] for one in index.reshape(-1).tolist())
    if len(steps) > 1 or not rows or not inside:
        return None
    return view.rows(axis, rows[0], len(rows), next(iter(steps), 1))


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
    "Pad": pad,
    "Gather": gather,
}
