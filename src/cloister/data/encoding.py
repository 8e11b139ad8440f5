"""Fixed-point encoding: real-valued fields as small integers, with a stated precision.

Functional encryption computes on integers. A client maps each field once, by one scale and one
offset for the whole data set, and every reader of an answer `A x` divides by the scale again.
Nothing is clipped: a value outside the range is an error of the client, named by sample and field,
because a silently clipped value would train a silently wrong model.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int, Int16

from cloister.errors import RangeError

Kind = Literal["pixels", "values", "table"]
"""Elements of samples. pixels: whole, 0 to 255. values: in one range. table: a range a column."""

MIN_BITS = 2
MAX_BITS = 16
OUTLIER_RATIO = 64
"""A range this many times as wide as that of nearly all values leaves them 4 of 256 steps."""
OUTLIER_SHARE = 100
"""One value in this many, at each end, is no part of "nearly all"."""


@dataclass(frozen=True)
class Encoding:
    """x is stored as the integer nearest to (x - offset) / scale, of `bits` bits with its sign."""

    scale: float
    offset: float
    bits: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise RangeError(f"encoding: scale must be positive and finite, got {self.scale}")
        if not math.isfinite(self.offset):
            raise RangeError(f"encoding: offset must be finite, got {self.offset}")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise RangeError(f"encoding: bits must be {MIN_BITS} to {MAX_BITS}, got {self.bits}")

    @staticmethod
    def for_range(low: float, high: float, *, bits: int = 8) -> "Encoding":
        """The finest encoding of `bits` bits that holds every value from `low` to `high`."""
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise RangeError(f"encoding: the range needs low < high, got {low} to {high}")
        if not MIN_BITS <= bits <= MAX_BITS:
            raise RangeError(f"encoding: bits must be {MIN_BITS} to {MAX_BITS}, got {bits}")
        steps = 2 * (2 ** (bits - 1) - 1)
        return Encoding(scale=(high - low) / steps, offset=(low + high) / 2, bits=bits)

    @property
    def bound(self) -> int:
        """Largest magnitude of an encoded value."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def resolution(self) -> float:
        """Largest distance between a value and what its encoding stands for."""
        return self.scale / 2

    @property
    def low(self) -> float:
        """Smallest value that is represented exactly."""
        return self.offset - self.bound * self.scale

    @property
    def high(self) -> float:
        """Largest value that is represented exactly."""
        return self.offset + self.bound * self.scale

    @property
    def divisor(self) -> float:
        """The number by which a model divides values: none of its inputs is beyond -2 to 2.

        Values of up to 1, and pixels, stay as they are. Those of a scan would be thousands, and no
        usual step of training fits them.
        """
        return max(1.0, self.bound * self.scale, abs(self.offset))

    @property
    def normalised(self) -> "Encoding":
        """The same integers as the inputs of a model."""
        return Encoding(self.scale / self.divisor, self.offset / self.divisor, self.bits)

    def encode(self, x: Float[np.ndarray, "n ..."]) -> Int16[np.ndarray, "n ..."]:
        """Round (x - offset) / scale to the nearest integer, ties to even.

        Domain   |(x - offset) / scale| rounds to at most `bound`
        Error    at most `resolution` for each value
        Raises   RangeError naming the first sample and field that is not representable
        """
        steps = np.rint((np.asarray(x, np.float64) - self.offset) / self.scale)
        # Written so that NaN counts as bad.
        bad = ~(np.abs(steps) <= self.bound)
        if bad.any():
            sample, *field = (int(i) for i in np.argwhere(bad)[0]) if bad.ndim else (0,)
            where = field[0] if len(field) == 1 else tuple(field)
            raise RangeError(
                f"encoding: sample {sample}, field {where}: the value is not between "
                f"{self.low:g} and {self.high:g}; widen the encoding or drop the sample"
            )
        return steps.astype(np.int16)

    def decode(self, steps: Int[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        """The real values that the integers stand for."""
        return np.asarray(steps, np.float64) * self.scale + self.offset


PIXEL_BITS = 9
"""0..255 needs 256 steps, one more than the symmetric range of 8 bits has."""
PIXELS = Encoding(scale=1 / 255, offset=128 / 255, bits=PIXEL_BITS)
"""Pixels p become p - 128 exactly, and stand for p / 255."""


def require_no_outlier(
    values: Float64[np.ndarray, " n"], ends: tuple[float, float], *, what: str, option: str
) -> None:
    """Refuse a range that a few values have made so wide that all others become alike.

    values   all of them, or some from everywhere; `ends` are the smallest and the largest of all
    Raises   RangeError
    """
    cut = max(1, len(values) // OUTLIER_SHARE)
    if len(values) < 5 * cut + 5:
        return
    ordered = np.sort(values)
    low, high = float(ordered[cut]), float(ordered[-1 - cut])
    # Halves, because the difference of two values may have no float64.
    below, most, above = low / 2 - ends[0] / 2, high / 2 - low / 2, ends[1] / 2 - high / 2
    if most > 0 and (below + most + above) / OUTLIER_RATIO > most:
        raise RangeError(
            f"{what}: the value {ends[int(above > below)]:g} would make all others alike, which "
            f"lie between {low:g} and {high:g}; correct it, or give a range with {option}"
        )
