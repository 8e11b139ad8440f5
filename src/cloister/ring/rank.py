"""Rank of the functionals that a server has been given, counted modulo a secret prime.

A `Basis` is the span of integer rows in reduced row echelon form modulo a prime below 2^61. That
form is unique, so equal spans have equal digests and a ledger may share one state between all
samples with the same history.

Why the prime is secret. The rank modulo p never exceeds the rank over the rationals, and it is
smaller exactly when p divides certain minors of the rows. Against a known p that is easy to
arrange: given 7 rows on 8 coordinates, the integer vectors that lie in their span modulo p form
a lattice of determinant p, whose shortest vectors have entries near 2^(61/8) = 2^8. Such a row is
an ordinary small weight vector, would be counted as free and would complete the eight pixels
(tests/ring/test_rank.py builds one). Rows that are independent over the rationals have a maximal
minor that is not zero, and stay independent, with all their prefixes, unless p divides it. For
784 rows of 16-bit entries it is below 2^16500 and has at most 275 prime divisors above 2^60, of
about 2^54 such primes: for a uniform secret prime a history of requests is undercounted with
probability below 2^-45. Draw it once with `random_modulus`, keep it with the master secret.

Products are exact in float64. Residues are split into three digits of 21 bits; products of
digits are below 2^42, and sums over at most 2048 terms below 2^53.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from cloister.base.rng import Csprng
from cloister.errors import RangeError, ShapeError
from cloister.ring.bounds import MAX_DIM

MERSENNE_61 = 2**61 - 1
"""A fixed prime for tests; an authority draws a secret one with `random_modulus`."""

_DIGIT_BITS = 21
_DIGIT_MASK = np.uint64(2**_DIGIT_BITS - 1)
_MAX_TERMS = 2**11
_ENTRIES_AT_ONCE = 2**21
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def rows_at_once(dim: int) -> int:
    """Rows that are eliminated together: some, for matrix products, and in bounded memory."""
    return max(1, min(64, _ENTRIES_AT_ONCE // dim))


def random_modulus(*, rng: Csprng) -> int:
    """A uniform prime between 2^60 and 2^61."""
    while True:
        candidate = int.from_bytes(rng.random_bytes(8), "big") >> 4 | 1 | 1 << 60
        if _is_prime(candidate):
            return candidate


def _is_prime(n: int) -> bool:
    """Miller-Rabin; these twelve witnesses decide every n below 2^64 (Sorenson, Webster 2015)."""
    if n < 2 or any(n % p == 0 for p in _WITNESSES):
        return n in _WITNESSES
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    return all(_passes(n, d, s, witness) for witness in _WITNESSES)


def _passes(n: int, d: int, s: int, witness: int) -> bool:
    power = pow(witness, d, n)
    if power in (1, n - 1):
        return True
    for _ in range(s - 1):
        power = power * power % n
        if power == n - 1:
            return True
    return False


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """A span of rows modulo `modulus`: reduced row echelon form, pivots ascending.

    Secret   modulus, and with it the rows
    """

    dim: int
    modulus: int
    rows: UInt64[np.ndarray, "rank dim"]
    pivots: Int64[np.ndarray, " rank"]

    @staticmethod
    def empty(dim: int, *, modulus: int) -> "Basis":
        """The span of nothing.

        Raises RangeError.
        """
        if not 1 <= dim <= MAX_DIM:
            raise RangeError(f"rank: a dimension is 1 to {MAX_DIM}, got {dim}")
        if not 2**60 < modulus < 2**61 or not _is_prime(modulus):
            raise RangeError("rank: the modulus must be a prime between 2^60 and 2^61")
        return Basis(dim, modulus, np.empty((0, dim), np.uint64), np.empty(0, np.int64))

    @property
    def rank(self) -> int:
        """Independent functionals in the span."""
        return int(self.rows.shape[0])

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form: equal exactly for equal spans (and equal moduli)."""
        return hashlib.sha256(self.to_bytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def extend(
        self, rows: Int64[np.ndarray, "k dim"], *, cap: int | None = None
    ) -> tuple["Basis", int]:
        """The span with `rows` added, and by how much its rank grew.

        With `cap`, work stops as soon as the rank exceeds it; the result is then this basis,
        unchanged, with the growth seen so far (at least cap - rank + 1): such a request is to be
        refused, and nothing of it may be recorded.

        Time     depends on values; about rank * k * dim products
        Raises   ShapeError
        """
        # A masked array would count as zero where it is masked.
        rows = np.array(rows)
        if rows.ndim != 2 or rows.shape[1] != self.dim or rows.dtype != np.int64:
            raise ShapeError(
                f"rank: rows must be int64 (k, {self.dim}), got {rows.dtype} {rows.shape}"
            )
        limit = self.dim if cap is None else cap
        found, pivots = self.rows, self.pivots
        step = rows_at_once(self.dim)
        for start in range(0, rows.shape[0], step):
            if len(pivots) == self.dim:
                break
            part = rows[start : start + step]
            # Python's sign convention: the remainder of a negative entry is its residue.
            residues = np.mod(part, self.modulus).astype(np.uint64)
            fresh = _subtract(residues, residues[:, pivots], found, self.modulus)
            found, pivots = _merge(
                (found, pivots), _echelon(fresh, self.modulus), modulus=self.modulus
            )
            if len(pivots) > limit:
                return self, len(pivots) - self.rank
        added = len(pivots) - self.rank
        return (Basis(self.dim, self.modulus, found, pivots) if added else self), added

    def to_bytes(self) -> bytes:
        """Canonical bytes, for the digest.  Secret: holds the modulus."""
        numbers = np.array([self.dim, self.rank, self.modulus], "<u8")
        parts = (numbers, self.pivots.astype("<u8"), self.rows.astype("<u8"))
        return b"".join(part.tobytes() for part in parts)


_Echelon = tuple[UInt64[np.ndarray, "_ dim"], Int64[np.ndarray, " _"]]


def _echelon(rows: UInt64[np.ndarray, "k dim"], modulus: int) -> _Echelon:
    """Reduced row echelon form by halves, so that the work is in matrix products."""
    rows = rows[rows.any(axis=1)]
    if len(rows) == 0:
        return rows, np.empty(0, np.int64)
    if len(rows) == 1:
        pivot = int((rows[0] != 0).argmax())
        inverse = np.array([[pow(int(rows[0, pivot]), -1, modulus)]], np.uint64)
        return _product(inverse, rows, modulus), np.array([pivot], np.int64)
    half = len(rows) // 2
    top, pivots = _echelon(rows[:half], modulus)
    rest = _subtract(rows[half:], rows[half:, pivots], top, modulus)
    return _merge((top, pivots), _echelon(rest, modulus), modulus=modulus)


def _merge(old: _Echelon, new: _Echelon, *, modulus: int) -> _Echelon:
    """One reduced form of two, where `new` is already zero at the pivots of `old`.

    Clearing `old` at the new pivots cannot move an old pivot: a new row reaches only columns
    from its own pivot on, and an old row is zero at new pivots left of its own.
    """
    (rows, pivots), (fresh, fresh_pivots) = old, new
    if len(fresh_pivots) == 0:
        return old
    cleared = _subtract(rows, rows[:, fresh_pivots], fresh, modulus)
    pivots = np.concatenate([pivots, fresh_pivots])
    order = np.argsort(pivots)
    return np.concatenate([cleared, fresh])[order], pivots[order]


def _subtract(
    rows: UInt64[np.ndarray, "k dim"],
    factors: UInt64[np.ndarray, "k rank"],
    basis: UInt64[np.ndarray, "rank dim"],
    modulus: int,
) -> UInt64[np.ndarray, "k dim"]:
    """rows - factors @ basis."""
    if 0 in factors.shape or not factors.any():
        return rows
    difference = rows + (np.uint64(modulus) - _product(factors, basis, modulus))
    return np.where(difference >= modulus, difference - np.uint64(modulus), difference)


def _product(
    a: UInt64[np.ndarray, "k rank"], b: UInt64[np.ndarray, "rank dim"], modulus: int
) -> UInt64[np.ndarray, "k dim"]:
    """a @ b modulo a prime between 2^60 and 2^61, exactly."""
    total: UInt64[np.ndarray, "k dim"] = np.zeros((a.shape[0], b.shape[1]), np.uint64)
    for start in range(0, a.shape[1], _MAX_TERMS):
        stop = start + _MAX_TERMS
        total = (total + _short_product(a[:, start:stop], b[start:stop], modulus)) % modulus
    return total


def _short_product(
    a: UInt64[np.ndarray, "k rank"], b: UInt64[np.ndarray, "rank dim"], modulus: int
) -> UInt64[np.ndarray, "k dim"]:
    """The same for at most 2048 terms: nine float64 products, then Horner by 2^21.

    Each product of digits is an integer below 2^42 * 2^11 = 2^53, hence exact in float64 in any
    order of summation. A Horner step takes r < 2^61 to r * 2^21 + s with s < 3 * 2^53: the
    quotient by p is below 2^23, so its float64 estimate is off by at most one, and the remainder
    computed modulo 2^64 lies between -p and 2p.
    """
    a_digits, b_digits = _digits(a), _digits(b)
    p, per_step = np.uint64(modulus), 2.0**_DIGIT_BITS / modulus
    r: UInt64[np.ndarray, "k dim"] = np.zeros((a.shape[0], b.shape[1]), np.uint64)
    for place in (4, 3, 2, 1, 0):
        s = np.zeros_like(r)
        for i in range(max(0, place - 2), min(place, 2) + 1):
            s += (a_digits[i] @ b_digits[place - i]).astype(np.uint64)
        quotient = (r.astype(np.float64) * per_step).astype(np.uint64)
        shifted = ((r << np.uint64(_DIGIT_BITS)) + s - quotient * p).view(np.int64)
        shifted += np.where(shifted < 0, modulus, 0)
        # s adds less than p / 64 to a remainder below 2p.
        r = shifted.view(np.uint64)
        for _ in range(2):
            r = np.where(r >= p, r - p, r)
    return r


def _digits(a: UInt64[np.ndarray, "k m"]) -> tuple[Float64[np.ndarray, "k m"], ...]:
    """Three digits of 21 bits, least first."""
    shifts = (np.uint64(0), np.uint64(_DIGIT_BITS), np.uint64(2 * _DIGIT_BITS))
    return tuple(((a >> shift) & _DIGIT_MASK).astype(np.float64) for shift in shifts)
