"""Exact integer products modulo 2^b by float64 matrix products.

A residue is taken centred and split into two signed digits of h = b / 2 bits. A product of digits
is at most 2^(2h - 2), so a sum over up to 2^(55 - 2h) terms stays within 2^53, where every
float64 operation on integers is exact in any order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

MAX_BITS = 44
"""h = 22 leaves 2^11 terms for one product."""

_PIECE = 2**14


@dataclass(frozen=True, eq=False, repr=False)
class ResidueDigits:
    """A matrix of residues modulo 2^bits as value = low + 2^(bits / 2) high."""

    bits: int
    low: Float64[np.ndarray, "rows terms"]
    high: Float64[np.ndarray, "rows terms"]


def centre(values: Int64[np.ndarray, "..."], bits: int) -> Int64[np.ndarray, "..."]:
    """The residues modulo 2^bits between -2^(bits-1) and 2^(bits-1) - 1; `values` may have wrapped.

    A shift left drops the high bits, the arithmetic shift right repeats the sign.
    """
    shift = np.int64(64 - bits)
    return np.asarray((values << shift) >> shift)


def split(values: Int64[np.ndarray, "rows terms"], bits: int) -> ResidueDigits:
    """Centred digits of the residues; a carry out of the high digit is a multiple of 2^bits.

    Row by row in pieces that stay in the cache.
    """
    half = bits // 2
    low, high = np.empty(values.shape, np.float64), np.empty(values.shape, np.float64)
    step = max(1, _PIECE // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        digit = centre(values[part], half)
        low[part] = digit
        high[part] = centre(values[part] - digit, bits) >> np.int64(half)
    return ResidueDigits(bits, low, high)


def product(a: ResidueDigits, b: ResidueDigits) -> Int64[np.ndarray, "rows columns"]:
    """a @ b^T modulo 2^bits, centred.

    The product of the high digits is a multiple of 2^bits and left out.
    """
    half = a.bits // 2
    terms = a.low.shape[1]
    step = 2 ** (55 - 2 * half)
    total = np.zeros((a.low.shape[0], b.low.shape[0]), np.int64)
    for start in range(0, terms, step):
        part = slice(start, start + step)
        low_a, low_b = a.low[:, part], b.low[:, part]
        cross = (low_a @ b.high[:, part].T).astype(np.int64)
        cross += (a.high[:, part] @ low_b.T).astype(np.int64)
        total += (low_a @ low_b.T).astype(np.int64) + (cross << np.int64(half))
    return centre(total, a.bits)
