"""Proposals of nodes for random graphs; ONNX Runtime says which of them are valid.

A proposal reads values of its scope and may add several nodes. It returns nothing: what it added
is in the scope.
"""

import numpy as np
from onnx import TensorProto, helper

from conformance.random_graphs import Scope, info

UNARY = (
    "PRelu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Erf", "Exp",
    "Abs", "Gelu", "Neg", "Floor", "Ceil", "Identity", "Dropout", "Softplus", "Elu", "Selu", "Celu",
    "Softsign", "Sin", "Cos", "Round", "Sign", "IsNaN", "IsInf", "Mish", "Shrink",
    "ThresholdedRelu", "Atan", "Log", "Sqrt", "Reciprocal",
)  # fmt: skip
"""The first one takes no scalar: ONNX and ONNX Runtime disagree about the size."""
MOST_TURNS, LAST = 6, 2**63 - 1
PAIRWISE = (
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Equal", "Greater", "Less", "Mod",
    "And", "Or", "Xor", "GreaterOrEqual", "Sum", "Mean",
)  # fmt: skip
REDUCTIONS = (
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceLogSumExp",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip
NORMALISATIONS = (
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN",
    "MeanVarianceNormalization", "LpNormalization", "GroupNormalization",
)  # fmt: skip
TYPES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64,
    TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8,
)  # fmt: skip


def window(scope: Scope, axes: int, op: str) -> dict[str, object]:
    """Kernel, strides and padding of every kind ONNX knows, valid or not.

    Where ONNX and ONNX Runtime disagree about a size, nothing is proposed.
    """
    several = lambda values: [scope.pick(values) for _ in range(axes)]  # noqa: E731
    found: dict[str, object] = {
        "kernel_shape": several(range(1, 4)), "strides": several(range(1, 4)),
    }  # fmt: skip
    if op != "AveragePool" or scope.opset >= 19:
        found["dilations"] = several([1, 1, 2])
    mode = scope.pick(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    if mode != "NOTSET":
        found["auto_pad"] = mode
    elif scope.chance():
        found["pads"] = [scope.pick(range(3)) for _ in range(2 * axes)]
    if op in ("MaxPool", "AveragePool"):
        found["ceil_mode"] = scope.pick([0, 1]) if axes < 3 else 0
    if op == "AveragePool":
        found["count_include_pad"] = scope.pick([0, 1])
    if op == "ConvTranspose" and mode == "NOTSET" and scope.chance():
        found["output_padding"] = several(range(2))
    return found


def axis_of(scope: Scope, array: np.ndarray) -> int:
    return scope.pick(range(-array.ndim, array.ndim))


# ---- linear nodes


def linear_convolution(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim in (3, 4, 5))
    if x is None:
        return
    channels, axes = scope.known(x).shape[1], scope.known(x).ndim - 2
    op = scope.pick(["Conv", "Conv", "ConvTranspose"])
    attributes = window(scope, axes, op)
    groups = scope.pick([g for g in (1, 1, channels) if g and channels % g == 0])
    out = groups * scope.pick([1, 2, 3])
    kernel = attributes["kernel_shape"]
    first = (out, channels // groups) if op == "Conv" else (channels, out // groups)
    terms = channels // groups * int(np.prod(kernel))
    inputs = [x, scope.weights(*first, *kernel, terms=terms)]
    if scope.chance():
        inputs.append(scope.weights(out))
    scope.add(op, inputs, group=groups, **attributes)


def linear_product(scope: Scope) -> None:
    """MatMul with a constant of any rank, in either position."""
    x = scope.floats(lambda array: 1 <= array.ndim <= 4)
    if x is None:
        return
    shape, out = scope.known(x).shape, scope.pick(range(1, 6))
    if scope.chance(3):
        rows = shape[-2] if len(shape) > 1 else shape[0]
        left = scope.weights(*scope.pick([(out, rows), (rows,), (2, out, rows)]), terms=rows)
        scope.add("MatMul", [left, x])
        return
    terms = shape[-1]
    heads = [(shape[-3], terms, out)] if len(shape) > 2 else []
    shapes = [(terms, out), (terms, out), (terms,), (1, terms, out), *heads]
    scope.add("MatMul", [x, scope.weights(*scope.pick(shapes), terms=terms)])


def linear_gemm(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim == 2)
    if x is None:
        return
    flip, turn = scope.pick([0, 1]), scope.pick([0, 0, 0, 1])
    rows, terms = scope.known(x).shape[::-1] if turn else scope.known(x).shape
    out = scope.pick(range(1, 6))
    inputs = [x, scope.weights(*((out, terms) if flip else (terms, out)), terms=terms)]
    if scope.chance():
        inputs.append(scope.weights(*scope.pick([(), (1,), (out,), (1, out), (rows, 1)])))
    numbers = {"alpha": scope.pick([1.0, 0.5]), "beta": scope.pick([1.0, -0.5])}
    scope.add("Gemm", inputs, transA=turn, transB=flip, **numbers)


def linear_einsum(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim in (2, 3, 4))
    if x is None:
        return
    shape, out = scope.known(x).shape, scope.pick(range(1, 6))
    letters = "abcd"[: len(shape)]
    equation = scope.pick([f"{letters},{letters[-1]}z->{letters[:-1]}z",
                           f"{letters},z{letters[-1]}->{letters[:-1]}z"])  # fmt: skip
    sizes = (shape[-1], out) if equation.split(",")[1][1] == "z" else (out, shape[-1])
    scope.add("Einsum", [x, scope.weights(*sizes, terms=shape[-1])], equation=equation)


def linear_chain(scope: Scope) -> None:
    """Dense layers on flattened values, as at the end of a network."""
    x = scope.floats(lambda array: array.ndim >= 2)
    if x is None:
        return
    flat = scope.add("Flatten", [x], axis=1)
    if flat is None or scope.known(flat).shape[1] == 0:
        return
    terms = scope.known(flat).shape[1]
    found = scope.add("MatMul", [flat, scope.weights(terms, 5, terms=terms)])
    if found is not None:
        found = scope.add("Add", [found, scope.weights(5)])
    if found is not None:
        scope.add(scope.pick(["Relu", "Tanh", "Softmax"]), [found])


def linear_half(scope: Scope) -> None:
    """A dense layer in float16 or float64."""
    x = scope.floats(lambda array: array.ndim >= 2 and array.shape[-1] > 0)
    if x is None:
        return
    to = scope.pick([TensorProto.FLOAT16, TensorProto.DOUBLE])
    terms = scope.known(x).shape[-1]
    found = scope.add("Cast", [x], to=to)
    if found is None:
        return
    dtype = helper.tensor_dtype_to_np_dtype(to)
    weights = scope.rng.standard_normal((terms, 3)) / np.sqrt(terms)
    found = scope.add("MatMul", [found, scope.constant(weights.astype(dtype))])
    if found is not None:
        scope.add("Cast", [found], to=TensorProto.FLOAT)


# ---- elements


def add_unary(scope: Scope) -> None:
    x = scope.floats()
    if x is not None:
        op = scope.pick(UNARY[scope.known(x).ndim == 0 :])
        scope.add(op, [x, scope.constant(np.array([0.2], np.float32))] if op == "PRelu" else [x])


def add_pairwise(scope: Scope) -> None:
    """Two values, or one and a constant, in either position."""
    a = scope.value()
    if a is None:
        return
    kind = scope.known(a).dtype
    shape = scope.known(a).shape
    b = scope.value(lambda array: array.dtype == kind) if scope.chance() else None
    if b is None:
        trailing = shape[scope.pick(range(len(shape) + 1)) :]
        small = [1 if scope.chance(3) else size for size in trailing]
        if kind.kind == "f":
            array = np.asarray(scope.rng.standard_normal(small), kind)
        else:
            array = np.asarray(scope.rng.integers(0, 2, small), kind)
        b = scope.constant(array)
    scope.add(scope.pick(PAIRWISE), [a, b] if scope.chance() else [b, a])


def add_where(scope: Scope) -> None:
    truth = scope.value(lambda array: array.dtype == np.bool_)
    a, b = scope.floats(), scope.floats()
    if a is None or b is None:
        return
    if truth is None:
        truth = scope.add("Greater", [a, b])
    if truth is not None:
        scope.add("Where", [truth, a, b])


def add_cast(scope: Scope) -> None:
    x = scope.value()
    if x is not None:
        scope.add("Cast", [x], to=scope.pick(TYPES))


def add_not(scope: Scope) -> None:
    x = scope.value(lambda array: array.dtype == np.bool_)
    if x is not None:
        scope.add("Not", [x])


def add_clip(scope: Scope) -> None:
    x = scope.floats()
    if x is not None:
        ends = [scope.constant(np.float32(-0.5)), scope.constant(np.float32(1.5))]
        scope.add("Clip", [x, *scope.pick([ends, ends[:1], ["", ends[1]]])])


# ---- windows and normalisation


def add_pool(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim in (3, 4, 5))
    if x is None:
        return
    if scope.chance(3):
        scope.add(scope.pick(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]), [x])
        return
    op = scope.pick(["MaxPool", "AveragePool"])
    outputs = 2 if op == "MaxPool" and scope.chance(5) else 1
    scope.add(op, [x], outputs, **window(scope, scope.known(x).ndim - 2, op))


def add_normalisation(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 2)
    if x is None:
        return
    shape = scope.known(x).shape
    channels = shape[1]
    op = scope.pick(NORMALISATIONS)
    if op == "BatchNormalization":
        inputs = [scope.weights(channels) for _ in range(3)]
        scope.add(op, [x, *inputs, scope.constant(np.full(channels, 0.5, np.float32))])
    elif op == "InstanceNormalization":
        scope.add(op, [x, scope.weights(channels), scope.weights(channels)])
    elif op == "LayerNormalization":
        scope.add(op, [x, scope.weights(shape[-1]), scope.weights(shape[-1])], axis=-1)
    elif op == "GroupNormalization":
        scope.add(op, [x, scope.weights(channels), scope.weights(channels)], num_groups=channels)
    elif op == "LRN":
        scope.add(op, [x], size=3)
    else:
        scope.add(op, [x])


def add_softmax(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 1)
    if x is not None:
        op = scope.pick(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
        scope.add(op, [x], axis=axis_of(scope, scope.known(x)))


def add_reduction(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 1)
    if x is None:
        return
    array, keep = scope.known(x), scope.pick([0, 1])
    op = scope.pick([*REDUCTIONS, "ArgMax", "CumSum"])
    if op == "ArgMax":
        scope.add(op, [x], axis=axis_of(scope, array), keepdims=keep)
    elif op == "CumSum":
        scope.add(op, [x, scope.constant(np.int64(axis_of(scope, array)))])
    else:
        axes = sorted(scope.some(range(array.ndim), 1, array.ndim))
        if scope.opset >= (13 if op == "ReduceSum" else 18):
            scope.add(op, [x, scope.constant(np.array(axes))], keepdims=keep)
        else:
            scope.add(op, [x], axes=axes, keepdims=keep)


# ---- shapes


def add_reshape(scope: Scope) -> None:
    x = scope.value(lambda array: array.ndim >= 1 and array.size > 0)
    if x is None:
        return
    shape = scope.known(x).shape
    tail = int(np.prod(shape[1:]))
    target = scope.pick(
        [[0, -1], [-1, tail], [-1, shape[-1]], [0, *shape[1:], 1], [-1], list(shape), [1, -1],
         [-1, 1, tail], [0, 0, -1], [shape[0], -1]]
    )  # fmt: skip
    scope.add("Reshape", [x, scope.constant(np.array(target, np.int64))])


def add_computed_reshape(scope: Scope) -> None:
    """Reshape, Expand or Slice to sizes that nodes compute, as exporters write them."""
    x = scope.value(lambda array: array.ndim >= 2 and array.size > 0)
    if x is None:
        return
    sizes = scope.add("Shape", [x])
    first = scope.add("Gather", [sizes, scope.constant(np.array([0]))], axis=0)
    if first is None:
        return
    kind = scope.pick(["reshape", "expand", "slice", "range", "fill", "tile"])
    if kind == "reshape":
        rest = scope.pick([[-1], [1, -1], [scope.known(x).shape[-1], -1]])
        target = scope.add("Concat", [first, scope.constant(np.array(rest))], axis=0)
        scope.add("Reshape", [x, target])
    elif kind == "expand":
        one = scope.weights(1, scope.known(x).shape[-1])
        shape = scope.add("Concat", [first, scope.constant(np.array([1]))], axis=0)
        scope.add("Expand", [one, shape])
    elif kind == "slice":
        zero, one = scope.constant(np.array([0])), scope.constant(np.array([1]))
        scope.add("Slice", [x, zero, first, zero, scope.pick([one, one])])
    elif kind == "range":
        axes = scope.constant(np.array([0]))
        end = scope.add("Squeeze", [first, axes]) if scope.opset >= 13 else None
        if end is not None:
            scope.add("Range", [scope.constant(np.int64(0)), end, scope.constant(np.int64(1))])
    elif kind == "fill":
        scope.add("ConstantOfShape", [sizes])
    else:
        scope.add("Tile", [x, scope.constant(np.array([1] * (scope.known(x).ndim - 1) + [2]))])


def add_axes(scope: Scope) -> None:
    x = scope.value()
    if x is None:
        return
    array = scope.known(x)
    op = scope.pick(["Unsqueeze", "Squeeze", "Transpose", "Flatten"])
    if op in ("Transpose", "Flatten") and array.ndim == 0:
        return
    if op == "Transpose":
        scope.add(op, [x], perm=scope.some(range(array.ndim), array.ndim, array.ndim))
    elif op == "Flatten":
        scope.add(op, [x], axis=scope.pick(range(array.ndim + 1)))
    else:
        at = scope.pick(range(array.ndim + 1))
        if scope.opset >= 13:
            scope.add(op, [x, scope.constant(np.array([at]))])
        else:
            scope.add(op, [x], axes=[at])


def add_concat(scope: Scope) -> None:
    a = scope.value(lambda array: array.ndim >= 1)
    if a is None:
        return
    array = scope.known(a)
    b = scope.value(lambda other: other.ndim == array.ndim and other.dtype == array.dtype)
    scope.add("Concat", scope.pick([[a, a], [a, b], [b, a]]), axis=axis_of(scope, array))


def add_split(scope: Scope) -> None:
    x = scope.value(lambda array: array.ndim >= 2 and array.shape[-1] >= 2)
    if x is None:
        return
    size = scope.known(x).shape[-1]
    if scope.opset >= 13:
        scope.add("Split", [x, scope.constant(np.array([1, size - 1]))], 2, axis=-1)
    else:
        scope.add("Split", [x], 2, axis=-1, split=[1, size - 1])


def add_slice(scope: Scope) -> None:
    x = scope.value(lambda array: array.ndim >= 1)
    if x is None:
        return
    axis = axis_of(scope, scope.known(x))
    # Backwards to the largest end, ONNX Runtime and ONNX disagree about the size.
    steps = [(1, LAST), (1, 2**31 - 1), (2, LAST), (1, -1), (2, 2), (-1, 0), (-1, -LAST)]
    step, end = scope.pick(steps)
    numbers = [scope.pick([0, 1, -2, -1]), end, axis, step]
    scope.add("Slice", [x, *(scope.constant(np.array([number])) for number in numbers)])


def add_gather(scope: Scope) -> None:
    x = scope.value(lambda array: array.ndim >= 1 and array.size > 0)
    if x is None:
        return
    indices = scope.value(lambda array: array.dtype == np.int64) if scope.chance(3) else None
    if indices is None:
        indices = scope.constant(np.array(scope.pick([0, [0], [0, 0], [[0], [0]], -1])))
    scope.add("Gather", [x, indices], axis=axis_of(scope, scope.known(x)))


def add_embedding(scope: Scope) -> None:
    indices = scope.value(lambda array: array.dtype == np.int64 and array.ndim >= 1)
    if indices is not None:
        scope.add("Gather", [scope.weights(8, 4), indices])


def add_pad(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 1)
    if x is None:
        return
    rank = scope.known(x).ndim
    pads = [scope.pick([0, 0, 1, 2]) for _ in range(2 * rank)]
    mode = scope.pick(["constant", "reflect", "edge"])
    scope.add("Pad", [x, scope.constant(np.array(pads))], mode=mode)


def add_resize(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim == 4)
    if x is None:
        return
    if scope.chance():
        scope.add(scope.pick(["DepthToSpace", "SpaceToDepth"]), [x], blocksize=2)
        return
    scales = scope.constant(np.array([1, 1, 2, scope.pick([1, 2])], np.float32))
    modes = {"mode": scope.pick(["nearest", "linear"])}
    scope.add("Resize", [x, "", scales] if scope.opset >= 13 else [x, scales, scales], **modes)


def add_indices(scope: Scope) -> None:
    """Operators whose outputs are positions, or have sizes that depend on values."""
    x = scope.floats(lambda array: array.ndim >= 1 and array.shape[-1] > 0)
    if x is None:
        return
    op = scope.pick(["TopK", "NonZero", "OneHot", "Shape", "Size", "GatherElements", "Trilu",
                     "EyeLike", "ScatterND", "Compress", "Unique"])  # fmt: skip
    if op == "TopK":
        scope.add(op, [x, scope.constant(np.array([1]))], 2, axis=-1)
    elif op == "OneHot":
        found = scope.add("ArgMax", [x], axis=-1, keepdims=0)
        if found is not None:
            values = scope.constant(np.array([0, 1], np.float32))
            scope.add(op, [found, scope.constant(np.int64(4)), values])
    elif op == "GatherElements":
        found = scope.add("ArgMax", [x], axis=-1, keepdims=1)
        if found is not None:
            scope.add(op, [x, found], axis=-1)
    elif op == "ScatterND":
        zero = scope.constant(np.zeros((1, scope.known(x).ndim), np.int64))
        scope.add(op, [x, zero, scope.constant(np.ones(1, np.float32))])
    elif op == "Compress":
        scope.add(op, [x, scope.constant(np.array([True]))], axis=-1)
    else:
        scope.add(op, [x])


# ---- states, numbers of few bits, sequences, bodies


def add_recurrent(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim == 3 and array.size > 0)
    if x is None:
        return
    op, gates = scope.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    inputs = [x, scope.weights(1, 3 * gates, scope.known(x).shape[-1]),
              scope.weights(1, 3 * gates, 3)]  # fmt: skip
    scope.add(op, inputs, 2, hidden_size=3)


def add_few_bits(scope: Scope) -> None:
    x = scope.floats()
    if x is None:
        return
    if scope.chance(3):
        scope.add("DynamicQuantizeLinear", [x], 3)
        return
    scale, zero = scope.constant(np.float32(0.05)), scope.constant(np.uint8(128))
    found = scope.add("QuantizeLinear", [x, scale, zero])
    if found is not None and scope.chance():
        scope.add("DequantizeLinear", [found, scale, zero])


def add_sequence(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 1)
    if x is None:
        return
    if scope.chance():
        found = scope.add("SequenceConstruct", [x, x])
    else:
        found = scope.add("SplitToSequence", [x], axis=scope.pick([0, -1]))
    if found is not None and scope.pick(range(3)):
        if scope.chance():
            scope.add("SequenceAt", [found, scope.constant(np.int64(0))])
        else:
            scope.add("ConcatFromSequence", [found], axis=0)


SIMPLE = (
    linear_product, linear_gemm, add_unary, add_unary, add_pairwise, add_clip, add_softmax,
    add_where, add_reduction, add_axes,
)  # fmt: skip


def grown(scope: Scope) -> Scope:
    for _ in range(scope.pick([1, 2, 3])):
        scope.pick(SIMPLE)(scope)
    return scope


def last(scope: Scope, fits=lambda _: True) -> str | None:
    """The newest value of a body that is computed there."""
    made = [out for node in scope.nodes for out in node.output]
    made = [out for out in made if isinstance(scope.values[out][0], np.ndarray)]
    return next((out for out in reversed(made) if fits(scope.values[out])), None)


def own(scope: Scope, name: str | None) -> str | None:
    """A value that is no other output of a body: ONNX Runtime mixes up outputs of one name."""
    return name and scope.add("Identity", [name])


def add_if(scope: Scope) -> None:
    truth = scope.value(lambda array: array.dtype == np.bool_ and array.size == 1)
    if truth is None or scope.chance():
        truth = scope.constant(np.bool_(scope.pick([True, False])))
    one = grown(scope.body())
    found = last(one)
    if found is None:
        return
    kind = one.values[found][0].dtype
    other = grown(scope.body())
    second = last(other, lambda value: value[0].dtype == kind)
    if second is None:
        return
    scope.add(
        "If", [truth], then_branch=one.as_graph([], [found]),
        else_branch=other.as_graph([], [second]),
    )  # fmt: skip


def add_loop(scope: Scope) -> None:
    state = scope.floats()
    if state is None:
        return
    body = scope.body()
    names = [body.fresh("i"), body.fresh("go"), body.fresh("s")]
    values = [(np.int64(0),) * 2, (np.bool_(True),) * 2, scope.visible()[state]]
    for name, value in zip(names, values, strict=True):
        body.values[name] = tuple(map(np.asarray, value))
    infos = [info(name, body.values[name][0]) for name in names]
    grown(body)
    kept = body.add("Identity", [names[1]])
    shape = body.values[names[2]]
    after = last(body, lambda value: all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(value, shape, strict=True)
    ))  # fmt: skip
    after = after or body.add("Tanh", [names[2]])
    extra = own(body, last(body))
    times = scope.value(
        lambda array: array.dtype == np.int64 and array.size == 1 and array.max() < MOST_TURNS
    )
    if times is None or scope.chance():
        times = scope.constant(np.int64(scope.pick([0, 1, 3])))
    if None in (kept, after, extra):
        return
    scope.add("Loop", [times, "", state], 2, body=body.as_graph(infos, [kept, after, extra]))


def add_scan(scope: Scope) -> None:
    x = scope.floats(lambda array: array.ndim >= 1)
    if x is None or not all(len(array) for array in scope.visible()[x]):
        return
    body = scope.body()
    state, row = body.fresh("s"), body.fresh("r")
    body.values[row] = tuple(np.asarray(value[0]) for value in scope.visible()[x])
    body.values[state] = tuple(np.zeros((), np.float32) for _ in range(2))
    infos = [info(name, body.values[name][0]) for name in (state, row)]
    start = scope.constant(np.float32(0))
    total = body.add("ReduceMax", [row], keepdims=0)
    total = total and body.add("Max", [state, total])
    grown(body)
    extra = own(body, last(body))
    if total is None or extra is None:
        return
    scope.add("Scan", [start, x], 2, num_scan_inputs=1, body=body.as_graph(infos, [total, extra]))


PROPOSALS = (
    linear_convolution, linear_convolution, linear_product, linear_product, linear_gemm,
    linear_einsum, linear_chain, linear_half, add_unary, add_unary, add_pairwise, add_pairwise,
    add_where, add_cast, add_not, add_clip, add_pool, add_normalisation, add_softmax, add_reduction,
    add_reshape, add_computed_reshape, add_axes, add_axes, add_concat, add_split, add_slice,
    add_gather, add_embedding, add_pad, add_resize, add_indices, add_recurrent, add_few_bits,
    add_sequence, add_if, add_loop, add_scan,
)  # fmt: skip
