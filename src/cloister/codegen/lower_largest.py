"""ArgMax, ArgMin and TopK: which elements along an axis are the largest."""

from collections.abc import Callable

from cloister.codegen.loop_nest import nest
from cloister.codegen.lowering import Layer, Lowering, of_type, words
from cloister.codegen.views import View
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import integer

Lower = Callable[[Lowering, Node], None]


def arg_extreme(sign: str) -> Lower:
    """Index of the largest (sign 1) or smallest (sign -1) element along an axis."""

    def lower(low: Lowering, node: Node) -> None:
        x = of_type(node, low.view(node.inputs[0]))
        axis = integer(node, "axis", 0) % len(x.shape)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        y = low.new(node.outputs[0]).reshaped(shape)
        last = integer(node, "select_last_index", 0)
        _add(low, node, x, axis, {"y": y}, sign, count=1, last=last)

    return lower


def top_k(low: Lowering, node: Node) -> None:
    """The k largest or smallest elements along an axis in order, and their indices."""
    x = of_type(node, low.view(node.inputs[0]))
    axis = integer(node, "axis", -1) % len(x.shape)
    given = low.constant(node, 1)
    count = integer(node, "k", 0) if given is None else int(given.reshape(-1)[0])
    if not 0 < count <= x.shape[axis]:
        raise UnsupportedError(f"node {node.name!r} (TopK): k is {count}, out of {x.shape[axis]}")
    writes: dict[str, View | None] = {
        name: low.new(output)
        for name, output in zip(("values", "y"), node.outputs, strict=False)
        if output
    }
    sign = "1.0f" if integer(node, "largest", 1) else "-1.0f"
    _add(low, node, x, axis, writes, sign, count=count, last=0)


def _add(
    low: Lowering,
    node: Node,
    x: View,
    axis: int,
    outputs: dict[str, View | None],
    sign: str,
    *,
    count: int,
    last: int,
) -> None:
    writes = {name: view for name, view in outputs.items() if view is not None}
    views = {"x": x, **{name: view.rows(axis, 0, 1) for name, view in writes.items()}}
    outer = nest(views, axes=[at for at in range(len(x.shape)) if at != axis])
    at_x = f"x + {outer.index('x')}"
    body = ["float value = 0.0f;", "int64_t index = 0;", "for (int k = 0; k < COUNT; k++) {"]
    body.append(f"    next_largest({at_x}, SIZE, STEP, {sign}, k == 0, {last}, &value, &index);")
    for name, view in writes.items():
        place = f"{name}[{outer.index(name)} + k * {view.steps[axis]}]"
        body.append(f"    {place} = {'index' if name == 'y' else f'{sign} * value'};")
    names = {"SIZE": x.shape[axis], "STEP": x.steps[axis], "COUNT": count, **outer.constants()}
    lines = outer.wrap([*body, "}"])
    low.add(
        Layer(words(node), node.op.lower(), names, {"x": x}, writes, lines, ("next_largest.c",))
    )


TABLE: dict[str, Lower] = {
    "ArgMax": arg_extreme("1.0f"),
    "ArgMin": arg_extreme("-1.0f"),
    "TopK": top_k,
}
