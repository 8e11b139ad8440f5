"""Weights in the order in which the C kernels read them; nothing is packed when a module runs."""

import numpy as np
from jaxtyping import Float32


def pack_conv(
    weights: Float32[np.ndarray, "oc c kh kw"], groups: int
) -> Float32[np.ndarray, "..."]:
    """Filters for `conv2d`: (oc, kh, kw, c), whatever the groups."""
    del groups
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1))


def pack_depthwise(weights: Float32[np.ndarray, "c kh kw"]) -> Float32[np.ndarray, "kh kw c"]:
    """Filters for `depthwise2d`."""
    return np.ascontiguousarray(weights.transpose(1, 2, 0))


def pack_dense(weights: Float32[np.ndarray, "k n"]) -> Float32[np.ndarray, "..."]:
    """A matrix for `dense`."""
    return np.ascontiguousarray(weights)


def conv_scratch_floats(
    *, size: tuple[int, int], channels: int, out_size: tuple[int, int], kernel: tuple[int, int]
) -> int:
    """Floats of scratch memory that `conv2d` needs."""
    del size, channels, out_size, kernel
    return 0
