"""Operators that move or describe values, in plain NumPy."""

import math

import numpy as np

from cloister.graph.element_types import ELEMENT_TYPES
from cloister.graph.ops.call import Call, NotCovered

NO_END = (2**31 - 1, 2**63 - 1)
"""Ends of a slice that ONNX Runtime reads as "up to the last row", whichever way it goes."""


def identity(call: Call) -> np.ndarray:
    """The input; dropout is this at inference."""
    training = call.optional(2)
    if call.outputs > 1 or (training is not None and training.any()):
        raise NotCovered("dropout at inference, without its mask")
    return call.x


def constant(call: Call) -> np.ndarray:
    """The value an attribute holds."""
    for name, kind in (
        ("value_int", np.int64), ("value_ints", np.int64),
        ("value_float", np.float32), ("value_floats", np.float32),
    ):  # fmt: skip
        if name in call.attributes:
            return np.array(call.attributes[name], kind)
    return _tensor(call.attributes.get("value"))


def constant_of_shape(call: Call) -> np.ndarray:
    """A constant value repeated to a shape."""
    value = call.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else _tensor(value)
    return np.full(tuple(call.x.tolist()), fill.reshape(-1)[0], fill.dtype)


def concat(call: Call) -> np.ndarray:
    """Values one after the other along an axis."""
    parts = [call.required(i) for i in range(len(call.inputs))]
    return np.concatenate(parts, axis=call.integer("axis", 0))


def reshape(call: Call) -> np.ndarray:
    """Another shape: -1 is what remains, 0 keeps the input's size."""
    shape = [int(size) for size in call.required(1).reshape(-1)]
    if not call.integer("allowzero", 0):
        shape = [call.x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return call.x.reshape(shape)


def flatten(call: Call) -> np.ndarray:
    """Two axes: the product of those before `axis`, the product of the rest."""
    axis = call.integer("axis", 1)
    axis = axis + call.x.ndim if axis < 0 else axis
    # Both sizes are stated: -1 has no meaning for an empty value.
    rows, columns = math.prod(call.x.shape[:axis]), math.prod(call.x.shape[axis:])
    return call.x.reshape(rows, columns)


def transpose(call: Call) -> np.ndarray:
    """Axes in another order."""
    return np.asarray(call.x.transpose(call.integers("perm")), order="C")


def squeeze(call: Call) -> np.ndarray:
    """Without axes of size one."""
    return np.asarray(np.squeeze(call.x, call.integers_at(1, "axes")))


def unsqueeze(call: Call) -> np.ndarray:
    """With new axes of size one."""
    return np.expand_dims(call.x, call.integers_at(1, "axes") or ())


def pad(call: Call) -> np.ndarray:
    """Rows added (or, negative, removed) at both ends of axes."""
    x, pads = call.x, call.integers_at(1, "pads") or ()
    mode = call.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise NotCovered("padding by a constant, a reflection or the edge")
    given = call.optional(3)
    axes = range(x.ndim) if given is None else [int(a) % x.ndim for a in given.reshape(-1)]
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        sides[axis] = (pads[i], pads[i + len(pads) // 2])
    crop = tuple(
        slice(max(-b, 0), n - max(-e, 0)) for n, (b, e) in zip(x.shape, sides, strict=True)
    )
    grow = [(max(b, 0), max(e, 0)) for b, e in sides]
    if mode == "reflect":
        if any(side < 0 for pair in sides for side in pair):
            raise NotCovered("reflection with cropping")
        return np.pad(x, grow, mode="reflect")
    if mode == "edge":
        return np.pad(x[crop], grow, mode="edge")
    fill = call.optional(2)
    value = call.number("value", 0.0) if fill is None else fill.reshape(-1)[0]
    return np.pad(x[crop], grow, constant_values=value)


def slice_(call: Call) -> np.ndarray:
    """Every step-th row from start to end along axes."""
    x = call.x
    starts, ends = call.integers_at(1, "starts") or (), call.integers_at(2, "ends") or ()
    axes = call.integers_at(3, "axes") or tuple(range(len(starts)))
    steps = call.integers_at(4, "steps") or (1,) * len(starts)
    parts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # Python reads a negative end as "from the back"; here one below the first row means all.
        lowest = -1 if step < 0 else 0
        stop = max(end + size if end < 0 else end, lowest)
        if end in NO_END and step < 0:
            stop = -1
        # ONNX moves a start before the first row onto it; Python would find nothing there.
        begin = max(start + size, 0) if start < 0 else start
        parts[axis] = slice(begin, None if stop < 0 else stop, step)
    return np.ascontiguousarray(x[tuple(parts)])


def gather(call: Call) -> np.ndarray:
    """Rows by index along an axis."""
    index = call.required(1)
    axis = call.integer("axis", 0)
    size = call.x.shape[axis]
    if index.size and (index.min() < -size or index.max() >= size):
        raise NotCovered("an index outside the axis")
    return np.asarray(np.take(call.x, index, axis=axis))


def expand(call: Call) -> np.ndarray:
    """Broadcast with a shape."""
    shape = np.broadcast_shapes(call.x.shape, tuple(call.required(1).tolist()))
    return np.ascontiguousarray(np.broadcast_to(call.x, shape)).reshape(shape)


def shape_of(call: Call) -> np.ndarray:
    """Sizes of the input's axes."""
    end = call.attributes.get("end")
    stop = end if isinstance(end, int) else None
    return np.array(call.x.shape[call.integer("start", 0) : stop], np.int64)


def cast(call: Call) -> np.ndarray:
    """Another number type; floating point is cut towards zero."""
    target = ELEMENT_TYPES[call.integer("to", 0)]
    plain = "biuf"
    if call.x.dtype.kind not in plain or target.kind not in plain or _loses_range(call.x, target):
        raise NotCovered("casts between plain numbers that are in range")
    return call.x.astype(target)


def range_(call: Call) -> np.ndarray:
    """Numbers from start to limit."""
    if call.x.dtype.kind != "i" or not call.required(2).any():
        raise NotCovered("a range of integers")
    start, limit, step = (int(call.required(i).reshape(())) for i in range(3))
    return np.arange(start, limit, step, dtype=call.x.dtype)


def _loses_range(x: np.ndarray, target: np.dtype) -> bool:
    """Whether C++ leaves the result of this cast open."""
    if x.dtype.kind != "f" or target.kind not in "iu" or not x.size:
        return False
    limits = np.iinfo(target)
    lowest, highest = float(np.min(x)), float(np.max(x))
    return not (limits.min <= lowest and highest <= float(limits.max) / 2)


def _tensor(value: object) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    raise NotCovered("a dense constant")
