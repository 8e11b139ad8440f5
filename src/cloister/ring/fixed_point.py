"""Real numbers as int16 integers with one power-of-two scale, by the native kernel."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt32

import cloister.base._native as native
from cloister.errors import RangeError, ShapeError

MAX_EXPONENT = 126
"""2^126 and 2^-126 are ordinary numbers of float32."""


class Magnitudes(NamedTuple):
    """The largest sum of absolute values, and the largest absolute value."""

    norm: float
    peak: float


def magnitudes(
    values: Float32[np.ndarray, "a b c"] | Float64[np.ndarray, "a b c"],
) -> Magnitudes:
    """For every b the sum of |v| over a and c: the largest; and the largest |v|.

    Error    sums are taken in float64 in an order of their own, the same on every machine: off by
             at most a * c * 2^-53 of themselves. A NaN or infinity anywhere makes the norm one;
             the peak means nothing then.
    Raises   ShapeError
    """
    _check(values)
    return Magnitudes(*native.magnitudes(values))


def round_scaled(
    values: Float32[np.ndarray, "a b c"] | Float64[np.ndarray, "a b c"], exponent: int
) -> Int16[np.ndarray, "a c b"]:
    """The integers nearest to v 2^exponent, half to even, with the last two axes exchanged.

    Domain   |v| 2^exponent below 2^15 - 1/2, for the caller to guarantee: beyond, they are wrong
    Raises   ShapeError, RangeError (exponent beyond 126)
    """
    _check(values)
    if abs(exponent) > MAX_EXPONENT:
        raise RangeError(f"fixed point: the exponent must be within 126, got {exponent}")
    a, b, c = values.shape
    integers = np.empty((a, c, b), np.int16)
    native.round_scaled(values, exponent, integers)
    return integers


def scaled_difference(
    p: UInt32[np.ndarray, "..."], m: UInt32[np.ndarray, "..."], factor: float
) -> Float32[np.ndarray, "..."]:
    """factor (p - m), with the difference modulo 2^32 centred in [-2^31, 2^31).

    Error    the difference and the factor are each rounded to float32, and their product is
    Raises   ShapeError
    """
    if p.shape != m.shape or p.dtype != np.uint32 or m.dtype != np.uint32:
        raise ShapeError(
            f"fixed point: a difference needs uint32 arrays of one shape, got {p.dtype} {p.shape} "
            f"and {m.dtype} {m.shape}"
        )
    out = np.empty(p.shape, np.float32)
    native.scale_difference(np.ascontiguousarray(p), np.ascontiguousarray(m), factor, out)
    return out


def _check(values: np.ndarray) -> None:
    if values.ndim != 3 or values.dtype not in (np.float32, np.float64):
        raise ShapeError(
            f"fixed point: values must be float32 or float64 (a, b, c), "
            f"got {values.dtype} {values.shape}"
        )
    if not values.flags.c_contiguous:
        raise ShapeError("fixed point: values must be C-contiguous; use np.ascontiguousarray")
