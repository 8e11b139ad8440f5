"""ONNX layouts and channels-last: (N, C, H, W) or (N, ..., K) against (n, h, w, c).

`channels_first` says which ONNX layout a value has: the channel axis is the second (convolutions,
pooling) or the last (dense layers, matrix products). A vector (N, C) is the same in both.

    channels_first        (N, C, H, W) - (n, h, w, c)   (N, C, L) - (n, 1, l, c)   (N, C) - (n, 1, 1, c)
    not channels_first    (N, ..., K)  - (n, 1, t, k), t the product of the middle sizes
"""  # noqa: E501  (a table)

import math
from collections.abc import Sequence

import numpy as np

from cloister.errors import ShapeError
from cloister.ring.transpose import transpose_each


def channels_last_shape(
    shape: Sequence[int | None], *, channels_first: bool
) -> tuple[int, int, int]:
    """(h, w, c) of one item of a value with this ONNX shape.

    More than two axes of an image become its width. Raises ShapeError for a free axis besides the
    first, or no other axis.
    """
    rest = [size for size in shape[1:] if size is not None]
    if len(rest) != len(shape) - 1 or not rest:
        raise ShapeError(f"a value of shape {tuple(shape)} has no channels-last form")
    if not channels_first:
        return (1, math.prod(rest[:-1]), rest[-1])
    channels, *size = rest
    if len(size) == 2:
        return (size[0], size[1], channels)
    return (1, math.prod(size), channels)


def to_channels_last(array: np.ndarray, *, channels_first: bool) -> np.ndarray:
    """An ONNX value as (n, h, w, c); a view where memory order allows."""
    h, w, c = channels_last_shape(array.shape, channels_first=channels_first)
    if channels_first:
        return array.reshape(len(array), c, h, w).transpose(0, 2, 3, 1)
    return array.reshape(len(array), h, w, c)


def from_channels_last(
    array: np.ndarray, shape: Sequence[int | None], *, channels_first: bool
) -> np.ndarray:
    """A C-contiguous ONNX value of this shape (first size: the array's) from (n, h, w, c).

    Raises ShapeError when the array does not hold such a value.
    """
    n, h, w, c = array.shape
    if (h, w, shape[1:]) == (1, 1, (c,)) and shape[0] in (None, n):
        return np.ascontiguousarray(array.reshape(n, c))  # the output of most classifiers
    target = channels_last_shape(shape, channels_first=channels_first)
    if target != (h, w, c) or shape[0] not in (None, n):
        raise ShapeError(f"an array of shape {array.shape} is no value of shape {tuple(shape)}")
    pixels = array.reshape(n, h * w, c)
    if channels_first and h * w > 1 and c > 1:
        pixels = transpose_each(pixels) if array.dtype == np.float32 else pixels.transpose(0, 2, 1)
    sizes = [size for size in shape[1:] if size is not None]
    return np.ascontiguousarray(pixels).reshape(n, *sizes)
