"""Pooling and reductions in plain NumPy."""

import numpy as np

from cloister.graph.ops.call import Call, NotCovered
from cloister.graph.ops.linear_ops import padding, windows

Sizes = tuple[int, ...]


def max_pool(call: Call) -> np.ndarray:
    """Largest value of each window; padding is ignored."""
    if call.outputs > 1 or call.x.dtype.kind != "f" or call.x.ndim > 4:
        raise NotCovered("max pooling of images in floating point, without indices")
    kernel, stride, dilation, begin, end = _geometry(call)
    lowest = float(np.finfo(call.x.dtype).min)
    view = _padded_windows(call.x, lowest, kernel, stride, dilation, begin, end)
    return np.asarray(view.max(axis=_spots(kernel)))


def average_pool(call: Call) -> np.ndarray:
    """Mean of each window; padding counts only with `count_include_pad`."""
    if call.x.ndim > 4:
        raise NotCovered("average pooling of images")
    kernel, stride, dilation, begin, end = _geometry(call)
    view = _padded_windows(call.x, 0.0, kernel, stride, dilation, begin, end)
    if call.integer("count_include_pad", 0):
        pads = _explicit_end(call, begin, kernel, stride, dilation)
        inside = np.ones(_grown(call.x.shape, begin, pads), call.x.dtype)
        rest = tuple(max(e - p, 0) for e, p in zip(end, pads, strict=True))
        counted = _padded_windows(inside, 0.0, kernel, stride, dilation, (0,) * len(begin), rest)
    else:
        inside = np.ones((1, 1, *call.x.shape[2:]), call.x.dtype)
        counted = _padded_windows(inside, 0.0, kernel, stride, dilation, begin, end)
    return np.asarray(view.sum(axis=_spots(kernel)) / counted.sum(axis=_spots(kernel)))


def global_average_pool(call: Call) -> np.ndarray:
    """Mean over all positions."""
    return np.asarray(call.x.mean(axis=tuple(range(2, call.x.ndim)), keepdims=True))


def global_max_pool(call: Call) -> np.ndarray:
    """Largest value over all positions."""
    return np.asarray(call.x.max(axis=tuple(range(2, call.x.ndim)), keepdims=True))


def reduce_mean(call: Call) -> np.ndarray:
    """Mean over axes."""
    axes = call.integers_at(1, "axes")
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return call.x
        axes = tuple(range(call.x.ndim))
    keep = bool(call.integer("keepdims", 1))
    return np.asarray(call.x.mean(axis=axes, keepdims=keep, dtype=call.x.dtype))


def _geometry(call: Call) -> tuple[Sizes, Sizes, Sizes, Sizes, Sizes]:
    """Kernel, stride, dilation and the padding that the last window needs."""
    kernel = call.integers("kernel_shape") or ()
    ones = (1,) * len(kernel)
    stride, dilation = call.integers("strides") or ones, call.integers("dilations") or ones
    size = call.x.shape[2:]
    odd = np.greater(stride, kernel).any() or max(dilation, default=1) > 1
    if odd and call.text("auto_pad", "NOTSET").startswith("SAME"):
        raise NotCovered("a stride up to the kernel and no dilation; the rest is in padding.py")
    begin, end = padding(call, size, kernel, stride, dilation)
    if call.text("auto_pad", "NOTSET") in ("NOTSET", "VALID") and call.integer("ceil_mode", 0):
        end = tuple(
            _ceil_end(size[i] + begin[i], end[i], (kernel[i] - 1) * dilation[i] + 1, stride[i])
            for i in range(len(size))
        )
        end = tuple(
            e - stride[i] if _starts_outside(size, begin, end, kernel, stride, dilation, i) else e
            for i, e in enumerate(end)
        )
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(n + b + e < r for n, b, e, r in zip(size, begin, end, reach, strict=True)):
        raise NotCovered("a window that fits into the image")
    return kernel, stride, dilation, begin, end


def _ceil_end(size: int, end: int, reach: int, stride: int) -> int:
    steps = -(-(size + end - reach) // stride)
    return steps * stride + reach - size


def _starts_outside(
    size: Sizes, begin: Sizes, end: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, i: int
) -> bool:
    """Whether the last window of ceil mode would lie in the padding behind the image."""
    reach = (kernel[i] - 1) * dilation[i] + 1
    last = (size[i] + begin[i] + end[i] - reach) // stride[i]
    return last * stride[i] >= size[i] + begin[i]


def _explicit_end(call: Call, begin: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Sizes:
    return padding(call, call.x.shape[2:], kernel, stride, dilation)[1]


def _grown(shape: Sizes, begin: Sizes, end: Sizes) -> Sizes:
    return (1, 1, *(s + b + e for s, b, e in zip(shape[2:], begin, end, strict=True)))


def _padded_windows(
    x: np.ndarray,
    fill: float,
    kernel: Sizes,
    stride: Sizes,
    dilation: Sizes,
    begin: Sizes,
    end: Sizes,
) -> np.ndarray:
    # A negative end crops rows that no window reaches.
    sides = [(b, max(e, 0)) for b, e in zip(begin, end, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=fill)
    if any(e < 0 for e in end):
        padded = padded[(..., *(slice(None, e if e < 0 else None) for e in end))]
    return windows(padded, kernel, stride, dilation)


def _spots(kernel: Sizes) -> Sizes:
    return tuple(range(-len(kernel), 0))
