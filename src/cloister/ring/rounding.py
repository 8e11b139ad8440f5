"""Fixed point: the one definition of rounding, half to even, in float32.

Every operation is one float32 operation, rounded on its own; the fused step does the same
operations in the same order, so both give the same bits.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt32

MAX_QMAX = 2**13 - 1
"""Activations have at most 14 bits."""


def dequantise(
    z: UInt32[np.ndarray, "*n c"], scale: Float32[np.ndarray, " c"], bias: Float32[np.ndarray, " c"]
) -> Float32[np.ndarray, "*n c"]:
    """float32(z) * scale + bias, z read as a centred integer."""
    product = z.view(np.int32).astype(np.float32) * scale
    result: np.ndarray = product + bias
    return result


def quantise(x: Float32[np.ndarray, "*n"], inv_scale: float, qmax: int) -> Int16[np.ndarray, "*n"]:
    """clip(round(x * inv_scale)), half to even, within [-qmax, qmax]; a NaN becomes -qmax."""
    rounded = np.rint(x * np.float32(inv_scale))
    # fmax and fmin return the number beside a NaN.
    return np.fmin(np.fmax(rounded, np.float32(-qmax)), np.float32(qmax)).astype(np.int16)


def clipped(x: Float32[np.ndarray, "*n"], inv_scale: float, qmax: int) -> Bool[np.ndarray, "*n"]:
    """Which values `quantise` clips: the nearest integer lies beyond qmax, or x is a NaN."""
    return ~(np.abs(np.rint(x * np.float32(inv_scale))) <= qmax)
