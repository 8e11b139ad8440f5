"""Operators that act on each element, with broadcasting."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from cloister.codegen.loop_nest import nest
from cloister.codegen.lowering import Layer, Lowering, literal, of_type, words
from cloister.codegen.views import C_TYPES, View, dense
from cloister.errors import UnsupportedError
from cloister.graph.graph import Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS, number

Lower = Callable[[Lowering, Node], None]
INDICES = ("int32", "int64")


def elementwise(
    low: Lowering,
    node: Node,
    operands: Sequence[View],
    expression: str,
    uses: Sequence[str] = (),
    *,
    output: str = "",
    title: Sequence[Node] = (),
) -> None:
    """Add a layer that computes one expression of its operands, {0}, {1} .., at each element."""
    output = output or node.outputs[0]
    shape = low.shape(output)
    full = next((one for one in operands if one.shape == shape), None)
    y = low.new(output, None if full is None else full.order)
    reads = {f"x{at}" if len(operands) > 1 else "x": one for at, one in enumerate(operands)}
    loops = nest({"y": y, **{name: one.broadcast(shape) for name, one in reads.items()}})
    values = [f"{name}[{loops.index(name)}]" for name in reads]
    body = loops.wrap([f"y[{loops.index('y')}] = {expression.format(*values)};"])
    name = node.op.lower()
    low.add(Layer(words(*(title or (node,))), name, loops.constants(), reads, {"y": y}, body, uses))


def clip_bounds(low: Lowering, node: Node) -> tuple[float, float] | None:
    """(lo, hi) of a node that limits a float32 value by constants; None for any other node."""
    if node.domain not in STANDARD_DOMAINS or low.dtype(node.outputs[0]) != np.float32:
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for at, name in enumerate(("min", "max")):
        given = node.inputs[at + 1] if len(node.inputs) > at + 1 else ""
        if given and not low.is_constant(given):
            return None
        bounds[at] = (
            float(low.graph.constants[given].reshape(-1)[0])
            if given
            else number(node, name, bounds[at])
        )
    return bounds[0], bounds[1]


def unary(expression: str, *uses: str) -> Lower:
    """An expression of one float32 value."""

    def lower(low: Lowering, node: Node) -> None:
        elementwise(low, node, [of_type(node, low.view(node.inputs[0]))], expression, uses)

    return lower


def variadic(expression: str, *uses: str, last: str = "{0}") -> Lower:
    """An expression of two float32 values, from left to right for more of them."""

    def lower(low: Lowering, node: Node) -> None:
        operands = [of_type(node, low.view(name)) for name in node.inputs]
        whole = "{0}"
        for at in range(1, len(operands)):
            whole = expression.replace("{1}", f"{{{at}}}").replace("{0}", whole)
        scale = literal(1 / len(operands))
        elementwise(low, node, operands, last.replace("{0}", whole).replace("SCALE", scale), uses)

    return lower


def arithmetic(sign: str) -> Lower:
    """A sum, difference or product from left to right; that of integers wraps around."""
    of_floats = variadic(f"({{0}} {sign} {{1}})")

    def lower(low: Lowering, node: Node) -> None:
        operands = [low.view(name) for name in node.inputs]
        if operands[0].buffer.dtype == np.float32 or len(operands) != 2:
            of_floats(low, node)
            return
        kind = of_type(node, operands[0], *INDICES).c_type
        expression = f"({kind})((u{kind}){{0}} {sign} (u{kind}){{1}})"
        elementwise(low, node, operands, expression)

    return lower


def comparison(sign: str) -> Lower:
    """Whether a relation between two values holds."""

    def lower(low: Lowering, node: Node) -> None:
        operands = [of_type(node, low.view(name), "float32", *INDICES) for name in node.inputs]
        elementwise(low, node, operands, f"(uint8_t)({{0}} {sign} {{1}})")

    return lower


def logical(expression: str) -> Lower:
    """An expression of truth values, which are 0 or 1."""

    def lower(low: Lowering, node: Node) -> None:
        operands = [of_type(node, low.view(name), "bool") for name in node.inputs]
        elementwise(low, node, operands, f"(uint8_t)({expression})")

    return lower


def where(low: Lowering, node: Node) -> None:
    """The second value where the first is true, else the third; both are read."""
    condition, *values = (low.view(name) for name in node.inputs)
    of_type(node, condition, "bool")
    kind = of_type(node, values[0], "float32", *INDICES).buffer.dtype
    function = "choose" if kind == np.float32 else f"choose_{kind.name}"
    expression = f"{function}({{0}}, {{1}}, {{2}})"
    elementwise(low, node, [condition, *values], expression, ("choose.c",))


def clip(low: Lowering, node: Node) -> None:
    """min(max(x, lo), hi)."""
    x = of_type(node, low.view(node.inputs[0]))
    bounds = clip_bounds(low, node)
    if bounds is not None:
        elementwise(low, node, [x], f"clamp({{0}}, {literal(bounds[0])}, {literal(bounds[1])})")
        return
    limits = [low.view(name) if name else None for name in (*node.inputs[1:3], "", "")[:2]]
    operands, parts = [x], ["-POSITIVE_INFINITY", "POSITIVE_INFINITY"]
    for at, limit in enumerate(limits):
        if limit is not None:
            parts[at] = f"{{{len(operands)}}}"
            operands.append(limit)
    elementwise(low, node, operands, f"clamp({{0}}, {parts[0]}, {parts[1]})")


def batch_normalization(low: Lowering, node: Node) -> None:
    """Scale and shift per channel, from stored moments."""
    if node.attributes.get("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        raise UnsupportedError(
            f"node {node.name!r} (BatchNormalization): is in training mode; export for inference"
        )
    x = of_type(node, low.view(node.inputs[0]))
    found = [low.constant(node, at) for at in range(1, 5)]
    if any(one is None or one.ndim != 1 for one in found):  # spatial=0 of operator set 8
        raise UnsupportedError(
            f"node {node.name!r} (BatchNormalization): has moments of each pixel; only those "
            "of each channel are compiled"
        )
    scale, shift, mean, variance = (np.float64(one) for one in found if one is not None)
    factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    per_channel = (-1, *(1,) * (len(x.shape) - 2))
    both = (factor, shift - mean * factor)
    views = [low.weight(one.astype(np.float32).reshape(per_channel)) for one in both]
    elementwise(low, node, [x, *views], "MADD({0}, {1}, {2})")


def cast(low: Lowering, node: Node) -> None:
    """Another number type; floating point is cut towards zero, and limited to what fits."""
    x = of_type(node, low.view(node.inputs[0]), "float32", "bool", *INDICES)
    target = low.dtype(node.outputs[0])
    if target.name not in C_TYPES:
        raise UnsupportedError(
            f"node {node.name!r} (Cast): converts to {target.name}; only {', '.join(C_TYPES)} are "
            "compiled"
        )
    low.define(node.outputs[0], cast_view(low, x, target, words(node)))


def cast_view(low: Lowering, x: View, target: np.dtype, title: str) -> View:
    """A value in another number type."""
    if target == x.buffer.dtype:
        return x
    y = dense(target, x.shape, x.order)
    loops = nest({"y": y, "x": x})
    function, uses = f"({y.c_type})", tuple[str, ...]()
    if target == np.bool_:
        function = "(uint8_t)(0 != "
    elif x.buffer.dtype == np.float32:
        function, uses = f"float_to_{target.name}", ("cast.c",)
    value = f"{function}(x[{loops.index('x')}]){')' if target == np.bool_ else ''}"
    statement = f"y[{loops.index('y')}] = {value};"
    body = loops.wrap([statement])
    low.add(Layer(title, "cast", loops.constants(), {"x": x}, {"y": y}, body, uses))
    return y


def power(low: Lowering, node: Node) -> None:
    """x to the power of 2 or 1/2."""
    exponent = low.constant(node, 1)
    x = of_type(node, low.view(node.inputs[0]))
    known = {2.0: "{0} * {0}", 0.5: "__builtin_sqrtf({0})", 1.0: "{0}"}
    value = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else 0.0
    if value not in known:
        raise UnsupportedError(f"node {node.name!r} (Pow): only powers 2, 1 and 1/2 are compiled")
    elementwise(low, node, [x], known[value])


def leaky_relu(low: Lowering, node: Node) -> None:
    """X, or alpha x below zero."""
    slope = literal(number(node, "alpha", 0.01))
    unary(f"({{0}} < 0.0f ? {slope} : 1.0f) * {{0}}")(low, node)


def hard_sigmoid(low: Lowering, node: Node) -> None:
    """clip(alpha x + beta, 0, 1)."""
    alpha, beta = (number(node, name, value) for name, value in (("alpha", 0.2), ("beta", 0.5)))
    line = f"MADD({{0}}, {literal(alpha)}, {literal(beta)})"
    unary(f"clamp({line}, 0.0f, 1.0f)")(low, node)


def gelu(low: Lowering, node: Node) -> None:
    """x Phi(x), exactly or with the tanh approximation."""
    kind = node.attributes.get("approximate", "none")
    if kind == "tanh":
        unary("gelu_tanh({0})", "gelu_tanh.c")(low, node)
    else:
        unary("gelu({0})", "gelu.c")(low, node)


TABLE: dict[str, Lower] = {
    "Relu": unary("clamp({0}, 0.0f, POSITIVE_INFINITY)"),
    "LeakyRelu": leaky_relu,
    "Clip": clip,
    "Sigmoid": unary("sigmoid({0})", "sigmoid.c"),
    "Tanh": unary("hyperbolic_tangent({0})", "tanh.c"),
    "Exp": unary("exponential({0})", "exp.c"),
    "Erf": unary("error_function({0})", "erf.c"),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(f"{{0}} * clamp(MADD({{0}}, {literal(1 / 6)}, 0.5f), 0.0f, 1.0f)"),
    "Neg": unary("-{0}"),
    "Abs": unary("bits_float(float_bits({0}) & 0x7fffffffu)"),
    "Sqrt": unary("__builtin_sqrtf({0})"),
    "Reciprocal": unary("1.0f / {0}"),
    "Pow": power,
    "Add": arithmetic("+"),
    "Sum": variadic("({0} + {1})"),
    "Mean": variadic("({0} + {1})", last="{0} * SCALE"),
    "Sub": arithmetic("-"),
    "Mul": arithmetic("*"),
    "Div": variadic("({0} / {1})"),
    "Max": variadic("larger({0}, {1})"),
    "Min": variadic("smaller({0}, {1})"),
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Equal": comparison("=="),
    "Less": comparison("<"),
    "LessOrEqual": comparison("<="),
    "Greater": comparison(">"),
    "GreaterOrEqual": comparison(">="),
    "Not": logical("1 - {0}"),
    "And": logical("{0} & {1}"),
    "Or": logical("{0} | {1}"),
    "Where": where,
}
