"""The transpose of a matrix of 32-bit words, by the native kernel."""

import numpy as np
from jaxtyping import UInt32

import cloister.base._native as native
from cloister.errors import ShapeError


def transpose(
    matrix: UInt32[np.ndarray, "rows columns"],
) -> UInt32[np.ndarray, "columns rows"]:
    """The transpose in C order, several times as fast as a strided copy.

    Raises   ShapeError
    """
    if matrix.ndim != 2 or matrix.dtype != np.uint32:
        raise ShapeError(f"transpose: not a uint32 matrix, but {matrix.dtype} {matrix.shape}")
    out = np.empty(matrix.shape[::-1], np.uint32)
    native.transpose(np.ascontiguousarray(matrix), out)
    return out
