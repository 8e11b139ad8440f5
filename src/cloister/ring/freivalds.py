"""Freivalds' check of linear maps modulo a 52-bit prime, with coefficients of rank one.

For secret alpha (one per output row), beta (per output column) and b (per output channel),
s[(y, x), o] = alpha[y] beta[x] b[o]:

    sum of s[p, o] z[p, o]  =  sum over q, c of t[q, c] x[q, c]    with t = A^T s.

A wrong answer differs from A x by some E != 0 with entries below 2^33 < P52, so E != 0 modulo P52.
The sum over s E is a non-zero polynomial of degree 3 in uniform variables: it vanishes with
probability at most 3 / P52 (Schwartz-Zippel). Why not dense coefficients: docs/adr/0001; why rows
and columns apart, so that t need not be stored: docs/adr/0005.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

import cloister.base._native as native
from cloister.base.rng import Csprng
from cloister.ring.linear import Geometry, LinearMap

P52 = 2**52 - 47
SOUNDNESS_BITS = math.floor(10 * (math.log2(P52) - math.log2(3))) / 10
"""-log2 of the chance that one wrong answer passes."""
NARROW = 8
"""Images up to this width, or with fewer channels than twice this, keep t itself: reading its few
numbers costs less than summing once for every column of the kernel. So do CPUs without vector
products of 16-bit integers, where a sum costs more than memory (docs/adr/0008)."""


@dataclass(frozen=True, eq=False, repr=False)
class CheckVectors:
    """Coefficients of one linear map.

    `a` (one per output position) and `b` (per channel) weigh the answer. The coefficient of the
    request's element (y, x, c) is the sum over k of columns[k, x] * rows[y, k, c]; without
    `columns` it is rows[y, x, c].

    Secret   all of them
    """

    a: UInt64[np.ndarray, " positions"]
    b: UInt64[np.ndarray, " channels"]
    rows: UInt64[np.ndarray, "h terms c"]
    columns: UInt64[np.ndarray, "terms w"] | None

    def erase(self) -> None:
        """Overwrite them."""
        for array in (self.a, self.b, self.rows, self.columns):
            if array is not None:
                array.fill(0)


def field_elements(count: int, *, rng: Csprng) -> UInt64[np.ndarray, " count"]:
    """Uniform elements of the field, by rejection."""
    found = np.empty(0, np.uint64)
    while len(found) < count:
        words = np.frombuffer(rng.random_bytes(8 * (count - len(found))), np.uint64)
        words = words & np.uint64(2**52 - 1)
        found = np.concatenate([found, words[words < P52]])
    return found


def keeps_factors(geometry: Geometry) -> bool:
    """Whether `draw` keeps rows and columns apart, or multiplies them out."""
    wide = geometry.in_size[1] > NARROW and geometry.in_channels >= 2 * NARROW
    return geometry.kernel[1] == 1 or (wide and native.isa() != "portable")


def coefficient_count(geometry: Geometry) -> int:
    """Numbers that `draw` keeps for the requests of a map."""
    if keeps_factors(geometry):
        per_row = geometry.in_channels * geometry.kernel[1]
        return geometry.in_size[0] * per_row + geometry.kernel[1] * geometry.in_size[1]
    return geometry.in_elements


def draw(linear: LinearMap, *, rng: Csprng) -> CheckVectors:
    """Fresh check vectors of a linear map."""
    factors = _factors(linear, rng=rng)
    if keeps_factors(linear.geometry):
        return factors
    return _multiplied_out(linear.geometry, factors)


def draw_dense(linear: LinearMap, *, rng: Csprng) -> CheckVectors:
    """Fresh check vectors with one coefficient for every element of a request."""
    return _multiplied_out(linear.geometry, _factors(linear, rng=rng))


def _factors(linear: LinearMap, *, rng: Csprng) -> CheckVectors:
    geometry = linear.geometry
    (height, width), (out_height, out_width) = geometry.in_size, geometry.out_size
    terms = geometry.kernel[1]
    alpha, beta = field_elements(out_height, rng=rng), field_elements(out_width, rng=rng)
    b = field_elements(geometry.out_channels, rng=rng)
    a = np.empty(out_height * out_width, np.uint64)
    columns = np.empty((terms, width), np.uint64)
    rows = np.empty((height, terms, geometry.in_channels), np.uint64)
    native.freivalds_factors(geometry.native(), linear.weights, alpha, beta, b, a, columns, rows)
    return CheckVectors(a, b, rows, columns)


def _multiplied_out(geometry: Geometry, factors: CheckVectors) -> CheckVectors:
    if factors.columns is None:
        return factors
    t = np.empty(geometry.in_shape, np.uint64)
    native.freivalds_expand(geometry.native(), factors.columns, factors.rows, t)
    return CheckVectors(factors.a, factors.b, t, None)
