"""Operators that reduce axes: softmax, means, sums, layer normalisation."""

import math
from collections.abc import Callable, Mapping

from cloister.codegen.loop_nest import LoopNest, nest
from cloister.codegen.lowering import Layer, Lowering, literal, of_type, words
from cloister.codegen.views import View
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import integer, integers, number

Lower = Callable[[Lowering, Node], None]


def softmax(low: Lowering, node: Node) -> None:
    """exp(x - max x) over its sum along an axis; before operator set 13, over all from there on."""
    x = of_type(node, low.view(node.inputs[0]))
    rank = len(x.shape)
    new = low.graph.opset >= 13
    axis = integer(node, "axis", -1 if new else 1) % max(rank, 1)
    axes = (axis,) if new else tuple(range(axis, rank))
    y = low.new(node.outputs[0], x.order)
    outer, inner = _loops({"y": y, "x": x}, axes)
    at_x, at_y = _element("x", outer, inner), _element("y", outer, inner)
    body = outer.wrap(
        [
            "float most = -POSITIVE_INFINITY, sum = 0.0f;",
            *inner.wrap([f"most = larger(most, {at_x});"]),
            *inner.wrap([f"{at_y} = exponential({at_x} - most);", f"sum += {at_y};"]),
            *inner.wrap([f"{at_y} /= sum;"]),
        ]
    )
    _add(low, node, outer, inner, {"x": x}, {"y": y}, body, "exp.c")


def reduction(start: str, step: str, *, mean: bool = False) -> Lower:
    """A reduction over axes: `total` begins with `start` and becomes `step` for every VALUE."""

    def lower(low: Lowering, node: Node) -> None:
        x = of_type(node, low.view(node.inputs[0]))
        rank = len(x.shape)
        given = low.constant(node, 1)
        axes = integers(node, "axes") if given is None else tuple(int(a) for a in given.reshape(-1))
        if not axes and integer(node, "noop_with_empty_axes", 0):
            low.define(node.outputs[0], x)
            return
        axes = tuple(axis % rank for axis in axes) or tuple(range(rank))
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        y = low.new(node.outputs[0])
        wide = y.reshaped(kept)
        if wide is None:
            raise UnsupportedError(f"node {node.name!r} ({node.op}): has an unknown shape")
        outer, inner = _loops({"x": x, "y": wide}, axes)
        scale = f" / {literal(math.prod(x.shape) // math.prod(kept))}" if mean else ""
        body = outer.wrap(
            [
                f"float total = {start};",
                *inner.wrap([f"total = {step.replace('VALUE', _element('x', outer, inner))};"]),
                f"y[{outer.index('y')}] = total{scale};",
            ]
        )
        _add(low, node, outer, inner, {"x": x}, {"y": y}, body)

    return lower


def layer_normalization(low: Lowering, node: Node) -> None:
    """Normalisation over the last axes, from `axis` on; its moments too, where they are read."""
    x = of_type(node, low.view(node.inputs[0]))
    rank = len(x.shape)
    axes = tuple(range(integer(node, "axis", -1) % rank, rank))
    reads = {"x": x, "scale": low.view(node.inputs[1])}
    if len(node.inputs) > 2 and node.inputs[2]:
        reads["shift"] = low.view(node.inputs[2])
    writes = {"y": low.new(node.outputs[0], x.order)}
    for name, output in zip(("mean", "deviation"), node.outputs[1:], strict=False):
        if output:
            writes[name] = low.new(output)
    views = {"y": writes["y"]} | {name: one.broadcast(x.shape) for name, one in reads.items()}
    views |= {n: writes[n].broadcast(x.shape) for n in ("mean", "deviation") if n in writes}
    outer, inner = _loops(views, axes)
    value = {name: _element(name, outer, inner) for name in reads}
    epsilon, size = literal(number(node, "epsilon", 1e-5)), math.prod(x.shape[a] for a in axes)
    normal = f"({value['x']} - centre) * factor"
    last = f"{normal} * {value['scale']}"
    if "shift" in reads:
        last = f"MADD({normal}, {value['scale']}, {value['shift']})"
    body = outer.wrap(
        [
            "float centre = 0.0f, square = 0.0f;",
            *inner.wrap([f"centre += {value['x']};"]),
            f"centre /= {literal(size)};",
            *inner.wrap(
                [f"float off = {value['x']} - centre;", "square = MADD(off, off, square);"]
            ),
            f"float factor = 1.0f / __builtin_sqrtf(square / {literal(size)} + {epsilon});",
            *inner.wrap([f"{_element('y', outer, inner)} = {last};"]),
            *(
                f"{name}[{outer.index(name)}] = {made};"
                for name, made in (("mean", "centre"), ("deviation", "factor"))
                if name in writes
            ),
        ]
    )
    _add(low, node, outer, inner, reads, writes, body)


def _loops(views: Mapping[str, View], axes: tuple[int, ...]) -> tuple[LoopNest, LoopNest]:
    """Loops over the axes that stay, and those over the reduced ones."""
    rank = len(next(iter(views.values())).shape)
    outer = tuple(axis for axis in range(rank) if axis not in axes)
    return nest(views, axes=outer), nest(views, axes=axes, letter="j")


def _element(name: str, outer: LoopNest, inner: LoopNest) -> str:
    terms = [index for index in (outer.index(name), inner.index(name)) if index != "0"]
    return f"{name}[{' + '.join(terms) or '0'}]"


def _add(
    low: Lowering,
    node: Node,
    outer: LoopNest,
    inner: LoopNest,
    reads: Mapping[str, View],
    writes: Mapping[str, View],
    body: list[str],
    *uses: str,
) -> None:
    names = {**outer.constants(), **inner.constants()}
    low.add(Layer(words(node), node.op.lower(), names, reads, writes, body, uses))


TABLE: dict[str, Lower] = {
    "Softmax": softmax,
    "ReduceMean": reduction("0.0f", "total + VALUE", mean=True),
    "ReduceSum": reduction("0.0f", "total + VALUE"),
    "ReduceMax": reduction("-POSITIVE_INFINITY", "larger(total, VALUE)"),
    "ReduceMin": reduction("POSITIVE_INFINITY", "smaller(total, VALUE)"),
    "LayerNormalization": layer_normalization,
}
