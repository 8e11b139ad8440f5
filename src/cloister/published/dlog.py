"""Logarithms of small numbers: the last step of decryption in a group.

A table holds the multiples -T .. T of the generator; a number further away is found by steps of
2 T + 1 (baby-step giant-step), so that a range of N numbers costs at most N / (2 T + 1) steps.
Time and memory accesses depend on the numbers found: for results that the caller learns anyway.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt8

import cloister.published._published_native as native
from cloister.errors import RangeError

MAX_CURVE_REACH = 2**40
"""Largest logarithm on the curve: half a million steps with the largest table."""
MAX_MODULAR_REACH = 2**30
"""The same in the 2048-bit group, where a step is a product of 2048-bit numbers."""

_SMALL_TABLE = 2**18
_LARGE_TABLE = 2**20
_FAR = 2**26
_NOT_FOUND = np.iinfo(np.int64).min


def check_found(found: Int64[np.ndarray, "*shape"], *, lo: int, hi: int) -> None:
    """Refuse answers without a logarithm in [lo, hi].

    Raises RangeError.
    """
    missing = np.argwhere(found == _NOT_FOUND)
    if missing.size:
        place = tuple(int(i) for i in missing[0])
        raise RangeError(
            f"logarithm: entry {place} (of {len(missing)}) is not within [{lo}, {hi}]: the key "
            "does not belong to the ciphertext, or the plaintext exceeds its stated bound"
        )


class CurveLogarithm:
    """Logarithms in [lo, hi] to the base of the generator of ristretto255."""

    def __init__(self, lo: int, hi: int) -> None:
        check_range(lo, hi, reach=MAX_CURVE_REACH)
        self.lo, self.hi = lo, hi
        self._table = _table(table_size(max(abs(lo), abs(hi))))

    def solve(
        self, elements: UInt8[np.ndarray, "n 32"], *, threads: int = 1
    ) -> Int64[np.ndarray, " n"]:
        """m of every element m G.

        Domain   canonical encodings; the comparison with the table is of whole elements
        Source   Shanks; table keyed by 64 bits of y/x + x/y (native/published/curve_point.hpp)
        Raises   RangeError when one lies outside the range; ValueError for bytes that are none
        """
        out = np.empty(len(elements), np.int64)
        self._table.solve(np.ascontiguousarray(elements), self.lo, self.hi, out, threads)
        check_found(out, lo=self.lo, hi=self.hi)
        return out

    def solve_products(
        self,
        points: UInt8[np.ndarray, "n c 32"],
        wide: UInt8[np.ndarray, "k w 32"],
        small: Int64[np.ndarray, "k s"],
        *,
        threads: int = 1,
    ) -> Int64[np.ndarray, "n k"]:
        """Logarithms of sum_j small_kj P_i,w+j - sum_j wide_kj P_ij.

        Raises   RangeError as `solve`
        """
        out = np.empty((len(points), len(small)), np.int64)
        self._table.solve_products(points, wide, small, len(small), self.lo, self.hi, out, threads)
        check_found(out, lo=self.lo, hi=self.hi)
        return out

    def solve_differences(
        self,
        points: UInt8[np.ndarray, "n 32"],
        scalars: UInt8[np.ndarray, "n 32"] | Int64[np.ndarray, " n"],
        subtrahends: UInt8[np.ndarray, "n 32"],
        *,
        threads: int = 1,
    ) -> Int64[np.ndarray, " n"]:
        """Logarithms of s_i P_i - Q_i.

        Raises   RangeError as `solve`
        """
        out = np.empty(len(points), np.int64)
        wide = scalars if scalars.dtype == np.uint8 else None
        small = scalars if scalars.dtype == np.int64 else None
        self._table.solve_differences(
            points, wide, small, subtrahends, self.lo, self.hi, out, threads
        )
        check_found(out, lo=self.lo, hi=self.hi)
        return out


def check_range(lo: int, hi: int, *, reach: int) -> None:
    """Refuse a range that is empty or would take too long to search.

    Raises RangeError.
    """
    if lo > hi:
        raise RangeError(f"logarithm: the range [{lo}, {hi}] is empty")
    if max(abs(lo), abs(hi)) > reach:
        raise RangeError(
            f"logarithm: the range [{lo}, {hi}] goes beyond {reach}: encode with fewer bits"
        )


def table_size(reach: int) -> int:
    """Entries of the table for logarithms up to `reach`: all of them while memory allows.

    An entry takes about 60 bytes. Sizes are powers of two, so that similar bounds share a table.
    """
    largest = _SMALL_TABLE if reach <= _FAR else _LARGE_TABLE
    return min(largest, max(2**10, 1 << (reach - 1).bit_length() if reach else 1))


@lru_cache(maxsize=4)
def _table(entries: int) -> native.CurveLogarithm:
    return native.CurveLogarithm(entries)


class ModularLogarithm:
    """Logarithms in [lo, hi] in a group of integers modulo a prime."""

    def __init__(self, modulus: int, generator: int, *, lo: int, hi: int) -> None:
        check_range(lo, hi, reach=MAX_MODULAR_REACH)
        self.lo, self.hi = lo, hi
        self._p = modulus
        reach = max(abs(lo), abs(hi))
        # A step costs as much as an entry: balanced for some hundred logarithms at once.
        self._reach = min(table_size(reach), 2**14)
        self._table = _modular_table(modulus, generator, self._reach)
        self._step = pow(generator, 2 * self._reach + 1, self._p)

    def solve(self, values: list[int]) -> list[int]:
        """m of every g^m; the lookup compares whole numbers.

        Raises   RangeError when one lies outside the range
        """
        found = [self._one(value) for value in values]
        answers = np.array([_NOT_FOUND if m is None else m for m in found], np.int64)
        check_found(answers, lo=self.lo, hi=self.hi)
        return [int(m) for m in answers]

    def _one(self, value: int) -> int | None:
        # up = g^(m - centre), down = g^(m + centre), for centre = 0, s, 2 s, ...
        back = pow(self._step, -1, self._p)
        up = down = int(value)
        stride = 2 * self._reach + 1
        for centre in range(0, max(abs(self.lo), abs(self.hi)) + stride, stride):
            for near, sign in ((up, 1), (down, -1)):
                m = self._table.get(near)
                if m is not None and self.lo <= m + sign * centre <= self.hi:
                    return m + sign * centre
            up, down = up * back % self._p, down * self._step % self._p
        return None


@lru_cache(maxsize=2)
def _modular_table(modulus: int, generator: int, reach: int) -> dict[int, int]:
    inverse = pow(generator, -1, modulus)
    table, up, down = {1: 0}, 1, 1
    for m in range(1, reach + 1):
        up, down = up * generator % modulus, down * inverse % modulus
        table[up], table[down] = m, -m
    return table
