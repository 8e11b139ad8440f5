"""The slow oracle: the same results as the native kernels, in plain NumPy and Python integers.

Nothing here is used at run time; every kernel is tested against it, bit for bit.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int16, Int32, UInt32, UInt64

from cloister.ring.freivalds import P52
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.rounding import clipped, dequantise, quantise
from cloister.ring.window_geometry import WindowGeometry


def taps(geometry: Geometry) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """For every kernel position: the output positions it serves and the input positions it reads.

    Yields ((i, j), outputs, inputs), the last two as flat row-major indices of equal length.
    """
    for i, j in itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        rows = _axis(geometry, 0, i)
        columns = _axis(geometry, 1, j)
        out_grid = rows[0][:, None] * geometry.out_size[1] + columns[0][None, :]
        in_grid = rows[1][:, None] * geometry.in_size[1] + columns[1][None, :]
        yield (i, j), out_grid.ravel(), in_grid.ravel()


def _axis(geometry: Geometry, axis: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    out = np.arange(geometry.out_size[axis])
    at = out * geometry.stride[axis] + k * geometry.dilation[axis] - geometry.pad[axis]
    up = geometry.upsample[axis]
    valid = (at >= 0) & (at % up == 0) & (at // up < geometry.in_size[axis])
    return out[valid], at[valid] // up


def linear_map(
    linear: LinearMap, x: UInt32[np.ndarray, "n h w c"] | Int16[np.ndarray, "n h w c"]
) -> UInt32[np.ndarray, "n oh ow oc"]:
    """A x modulo 2^32."""
    g = linear.geometry
    words = x.astype(np.int32).view(np.uint32) if x.dtype == np.int16 else x
    flat = words.reshape(len(x), -1, g.in_channels).astype(np.uint64)
    out = np.zeros((len(x), g.out_size[0] * g.out_size[1], g.out_channels), np.uint64)
    cin, cout = g.in_channels // g.groups, g.out_channels // g.groups
    weights = linear.weights.astype(np.int64).view(np.uint64)
    for (i, j), outputs, inputs in taps(g):
        for group in range(g.groups):
            w = weights[group * cout : (group + 1) * cout, i, j, :]
            part = flat[:, inputs, group * cin : (group + 1) * cin]
            # Products and sums wrap modulo 2^64, of which 2^32 is a divisor.
            out[:, outputs, group * cout : (group + 1) * cout] += np.einsum("npc,oc->npo", part, w)
    return (out & np.uint64(2**32 - 1)).astype(np.uint32).reshape(len(x), *g.out_shape)


def adjoint(
    linear: LinearMap, a: UInt64[np.ndarray, " p"], b: UInt64[np.ndarray, " o"]
) -> UInt64[np.ndarray, " q"]:
    """A^T (a b^T) modulo P52, in Python integers."""
    g = linear.geometry
    cin, cout = g.in_channels // g.groups, g.out_channels // g.groups
    big_b = b.astype(object)
    t = np.zeros((g.in_size[0] * g.in_size[1], g.in_channels), object)
    for (i, j), outputs, inputs in taps(g):
        for group in range(g.groups):
            rows = slice(group * cout, (group + 1) * cout)
            folded = big_b[rows] @ linear.weights[rows, i, j, :].astype(object) % P52
            products = a[outputs].astype(object)[:, None] * folded[None, :]
            # A kernel position reads every input position at most once.
            t[inputs, slice(group * cin, (group + 1) * cin)] += products
    return (t.ravel() % P52).astype(np.uint64)


def factored(
    rows: UInt64[np.ndarray, "h terms c"], columns: UInt64[np.ndarray, "terms w"] | None
) -> UInt64[np.ndarray, "h w c"]:
    """Sum over k of columns[k, x] rows[y, k, c] modulo P52; without columns, rows as they are."""
    if columns is None:
        return rows
    big_rows, big_columns = rows.astype(object), columns.astype(object)
    t = np.zeros((rows.shape[0], columns.shape[1], rows.shape[2]), object)
    for k in range(len(columns)):
        t += big_columns[k][None, :, None] * big_rows[:, k, None, :]
    return (t % P52).astype(np.uint64)


def check_sum(coefficients: UInt64[np.ndarray, " k"], values: np.ndarray) -> int:
    """<coefficients, values> modulo P52; values are signed integers."""
    return int(coefficients.astype(object) @ values.ravel().astype(object) % P52)


def answer_sum(
    a: UInt64[np.ndarray, " p"], b: UInt64[np.ndarray, " o"], z: Int32[np.ndarray, "oh ow o"]
) -> int:
    """Sum of a[p] b[o] z[p, o] modulo P52, for one answer."""
    dense = np.outer(a.astype(object), b.astype(object)) % P52
    return check_sum(dense.ravel().astype(np.uint64), z)


def clamp(x: Float32[np.ndarray, "*n"], lo: float, hi: float) -> Float32[np.ndarray, "*n"]:
    """min(max(x, lo), hi); on a tie the bound wins, so max(-0.0, 0.0) is 0.0."""
    low, high = np.float32(lo), np.float32(hi)
    raised: np.ndarray = np.where(x > low, x, low)
    result: np.ndarray = np.where(raised < high, raised, high)
    return result


def blind(q: Int16[np.ndarray, "*n"], pad: UInt32[np.ndarray, "*n"]) -> UInt32[np.ndarray, "*n"]:
    """q + pad modulo 2^32."""
    result: np.ndarray = q.astype(np.int32).view(np.uint32) + pad
    return result


def pool(
    x: Float32[np.ndarray, "n h w c"], window: WindowGeometry
) -> Float32[np.ndarray, "n oh ow c"]:
    """Pooling as a fused step defines it."""
    (kh, kw), (oh, ow) = window.kernel, window.out_size
    (sh, sw), (dh, dw), (pt, pl) = window.stride, window.dilation, window.pad
    n, h, w, c = x.shape
    out = np.empty((n, oh, ow, c), np.float32)
    for r, s in itertools.product(range(oh), range(ow)):
        found = [
            x[:, r * sh + i * dh - pt, s * sw + j * dw - pl]
            for i, j in itertools.product(range(kh), range(kw))
            if 0 <= r * sh + i * dh - pt < h and 0 <= s * sw + j * dw - pl < w
        ]
        if window.kind == "max":
            largest = found[0]
            for part in found[1:]:
                largest = np.where(part > largest, part, largest)
            out[:, r, s] = largest
            continue
        total = np.zeros((n, c), np.float32)
        for part in found:
            total = total + part
        out[:, r, s] = total / np.float32(kh * kw if window.count_include_pad else len(found))
    return out


def depthwise(
    x: Float32[np.ndarray, "n h w c"],
    weights: Float32[np.ndarray, "kh kw c"],
    bias: Float32[np.ndarray, " c"],
    window: WindowGeometry,
    lo: float,
    hi: float,
) -> Float32[np.ndarray, "n oh ow c"]:
    """A depthwise convolution as a fused step defines it.

    Taps inside the image, in row-major order; every product and every sum is rounded to float32.
    """
    (kh, kw), (oh, ow) = window.kernel, window.out_size
    (sh, sw), (dh, dw), (pt, pl) = window.stride, window.dilation, window.pad
    n, h, w, c = x.shape
    total = np.zeros((n, oh, ow, c), np.float32)
    for i, j in itertools.product(range(kh), range(kw)):
        rows, ys = _inside(oh, sh, i * dh - pt, h)
        columns, zs = _inside(ow, sw, j * dw - pl, w)
        # Every product and every sum is one float32 operation, in the order of the taps.
        total[:, rows, columns] += x[:, ys, zs] * weights[i, j]
    return clamp(total + bias, lo, hi)


def _inside(count: int, stride: int, offset: int, size: int) -> tuple[slice, slice]:
    """Outputs r with 0 <= r * stride + offset < size, and the inputs they read."""
    first = max(0, -(offset // stride))
    last = min(count - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    begin = first * stride + offset
    return slice(first, last + 1), slice(begin, last * stride + offset + 1, stride)


class Affine(NamedTuple):
    """The values of an answer: float32(answer) * scale + bias, channel by channel."""

    scale: Float32[np.ndarray, " c"]
    bias: Float32[np.ndarray, " c"]


class Filters(NamedTuple):
    """A depthwise convolution and the clamp behind it."""

    weights: Float32[np.ndarray, "kh kw c"]
    bias: Float32[np.ndarray, " c"]
    lo: float
    hi: float


class Sink(NamedTuple):
    """One request: under a pad or in the clear, summed if its node is checked."""

    inv_scale: float
    qmax: int
    pad: UInt32[np.ndarray, "n h w c"] | None = None
    coefficients: UInt64[np.ndarray, "h w c"] | None = None


class FusedResult(NamedTuple):
    """The outputs of a fused step; sums are canonical residues modulo P52."""

    before_window: Float32[np.ndarray, "n h w c"]
    value: Float32[np.ndarray, "n oh ow c"]
    requests: list[np.ndarray]
    answer_sums: UInt64[np.ndarray, " n"]
    request_sums: UInt64[np.ndarray, "sinks n"]
    clipped: UInt64[np.ndarray, "sinks n"]


def fused_step(
    source: UInt32[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"],
    *,
    affine: Affine | None = None,
    unblinding: UInt32[np.ndarray, "n h w c"] | None = None,
    coefficients: tuple[UInt64[np.ndarray, " p"], UInt64[np.ndarray, " c"]] | None = None,
    residual: Float32[np.ndarray, "n h w c"] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    window: WindowGeometry | None = None,
    filters: Filters | None = None,
    sinks: Sequence[Sink] = (),
) -> FusedResult:
    """The step of native/include/cloister/fused_step.hpp, one operation after the other.

    An answer has `affine`; without, the source is float32. `coefficients` weigh the unblinded
    answer's positions and channels.
    """
    n = len(source)
    answer_sums = np.zeros(n, np.uint64)
    values = source
    if affine is not None:
        words = source if unblinding is None else source - unblinding
        if coefficients is not None:
            answer_sums[:] = [answer_sum(*coefficients, z) for z in words.view(np.int32)]
        values = dequantise(words, affine.scale, affine.bias)
    if residual is not None:
        values = values + residual
    before = value = clamp(values, *bounds)
    if window is not None and filters is not None:
        value = depthwise(before, filters.weights, filters.bias, window, filters.lo, filters.hi)
    elif window is not None:
        value = pool(before, window)
    requests = []
    request_sums = np.zeros((len(sinks), n), np.uint64)
    counts = np.zeros((len(sinks), n), np.uint64)
    for i, sink in enumerate(sinks):
        q = quantise(value, sink.inv_scale, sink.qmax)
        counts[i] = clipped(value, sink.inv_scale, sink.qmax).sum(axis=(1, 2, 3))
        if sink.coefficients is not None:
            request_sums[i] = [check_sum(sink.coefficients.ravel(), one) for one in q]
        requests.append(q if sink.pad is None else blind(q, sink.pad))
    return FusedResult(before, value, requests, answer_sums, request_sums, counts)
