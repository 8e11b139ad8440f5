"""Linear operators in plain NumPy: the definition the fixed-point arithmetic approximates."""

from typing import Any

import numpy as np

from cloister.graph.ops.call import Call, NotCovered

Sizes = tuple[int, ...]
Index = tuple[Any, ...]


def conv(call: Call) -> np.ndarray:
    """Convolution over one or two axes."""
    x, weights, bias = call.x, call.required(1), call.optional(2)
    kernel, stride, dilation = _window(call, weights)
    begin, end = padding(call, x.shape[2:], kernel, stride, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *zip(begin, end, strict=True)))
    y = _correlate(padded, weights, stride, dilation, call.integer("group", 1))
    return _with_bias(y, bias)


def conv_transpose(call: Call) -> np.ndarray:
    """Transposed convolution: spread the input by the stride, correlate with the flipped kernel."""
    x, weights, bias = call.x, call.required(1), call.optional(2)
    kernel, stride, dilation = _window(call, weights)
    groups = call.integer("group", 1)
    begin, out = _transposed_size(call, x.shape[2:], kernel, stride, dilation)
    spread = np.zeros(
        (*x.shape[:2], *((i - 1) * s + 1 for i, s in zip(x.shape[2:], stride, strict=True))),
        x.dtype,
    )
    every: Index = (..., *(slice(None, None, s) for s in stride))
    spread[every] = x
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    # Enough zeros on both sides for every output position; then the begin pad is cut away.
    behind = [max(o + b - i, 0) for o, b, i in zip(out, begin, spread.shape[2:], strict=True)]
    sides = [(r, max(r, b)) for r, b in zip(reach, behind, strict=True)]
    padded = np.pad(spread, ((0, 0), (0, 0), *sides))
    full = _correlate(padded, _flipped(weights, groups), (1,) * len(kernel), dilation, groups)
    part: Index = (..., *(slice(b, b + o) for b, o in zip(begin, out, strict=True)))
    return _with_bias(np.ascontiguousarray(full[part]), bias)


def gemm(call: Call) -> np.ndarray:
    """alpha A B + beta C."""
    a, b, c = call.x, call.required(1), call.optional(2)
    a = a.T if call.integer("transA", 0) else a
    b = b.T if call.integer("transB", 0) else b
    y = np.matmul(a, b) * a.dtype.type(call.number("alpha", 1.0))
    return np.asarray(y if c is None else y + c * a.dtype.type(call.number("beta", 1.0)))


def matmul(call: Call) -> np.ndarray:
    """Matrix product with NumPy's own broadcasting."""
    return np.asarray(np.matmul(call.x, call.required(1)))


def padding(
    call: Call, size: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> tuple[Sizes, Sizes]:
    """Padding before and behind each axis of a convolution or pooling window."""
    mode = call.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-i // s) - 1) * s + (k - 1) * d + 1 - i, 0)
            for i, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        begin = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
        return begin, tuple(t - b for t, b in zip(total, begin, strict=True))
    pads = call.integers("pads")
    if mode == "VALID" or pads is None:
        return (0,) * len(size), (0,) * len(size)
    return pads[: len(size)], pads[len(size) :]


def windows(x: np.ndarray, kernel: Sizes, stride: Sizes, dilation: Sizes) -> np.ndarray:
    """View (N, C, *out, *kernel) of every window of a padded value."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    steps = [slice(None, None, s) for s in (*stride, *dilation)]
    return view[(slice(None), slice(None), *steps)]


def _window(call: Call, weights: np.ndarray) -> tuple[Sizes, Sizes, Sizes]:
    rank = weights.ndim - 2
    if rank not in (1, 2) or not np.issubdtype(weights.dtype, np.floating):
        raise NotCovered("convolution over one or two axes in floating point")
    ones = (1,) * rank
    return (
        weights.shape[2:],
        call.integers("strides") or ones,
        call.integers("dilations") or ones,
    )


def _correlate(
    padded: np.ndarray, weights: np.ndarray, stride: Sizes, dilation: Sizes, groups: int
) -> np.ndarray:
    view = windows(padded, weights.shape[2:], stride, dilation)
    rank = weights.ndim - 2
    spots = tuple(range(2 + rank, 2 + 2 * rank))
    parts = [
        np.tensordot(x, w, axes=((1, *spots), tuple(range(1, 2 + rank))))
        for x, w in zip(np.split(view, groups, 1), np.split(weights, groups), strict=True)
    ]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts, axis=-1), -1, 1))


def _flipped(weights: np.ndarray, groups: int) -> np.ndarray:
    c, oc, *kernel = weights.shape
    turned = np.flip(weights, tuple(range(2, weights.ndim)))
    parts = turned.reshape(groups, c // groups, oc, *kernel).swapaxes(1, 2)
    return parts.reshape(groups * oc, c // groups, *kernel)


def _transposed_size(
    call: Call, size: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> tuple[Sizes, Sizes]:
    """Padding to cut off at the beginning, and the output size."""
    rank = len(size)
    extra = call.integers("output_padding") or (0,) * rank
    full = [
        (size[i] - 1) * stride[i] + extra[i] + (kernel[i] - 1) * dilation[i] + 1
        for i in range(rank)
    ]
    mode = call.text("auto_pad", "NOTSET")
    asked = call.integers("output_shape")
    same = mode in ("SAME_UPPER", "SAME_LOWER")
    if asked is None and not same:
        begin, end = padding(call, size, kernel, stride, dilation)
        return begin, tuple(f - b - e for f, b, e in zip(full, begin, end, strict=True))
    out = tuple(i * s for i, s in zip(size, stride, strict=True)) if asked is None else asked
    out = out[-rank:]
    total = [max(f - o, 0) for f, o in zip(full, out, strict=True)]
    return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total), out


def _with_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is None:
        return y
    return np.asarray(y + bias.reshape(-1, *(1,) * (y.ndim - 2)))
