"""Freivalds' check of linear maps modulo a 52-bit prime, with rank-one coefficients.

For secret a (one per output position) and b (one per output channel), s[p, o] = a[p] b[o]:

    sum over p, o of s[p, o] z[p, o]  =  sum over q, c of t[q, c] x[q, c]    with t = A^T s.

A wrong answer differs from A x by some E != 0 with entries below 2^33 < P52, so E != 0 modulo P52.
a^T E b is a non-zero polynomial of degree 2 in uniform variables: it vanishes with probability at
most 2 / P52 (Schwartz-Zippel). Why not dense coefficients: docs/adr/0001.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from cloister import _native
from cloister.crypto.csprng import Csprng
from cloister.field.linear import LinearMap

P52 = 2**52 - 47
SOUNDNESS_BITS = math.floor(10 * (math.log2(P52) - 1)) / 10
"""-log2 of the chance that one wrong answer passes."""


@dataclass(frozen=True, eq=False, repr=False)
class CheckVectors:
    """Coefficients of one linear map: `a` per output position, `b` per channel, `t = A^T (a b^T)`.

    Secret   all three
    """

    a: UInt64[np.ndarray, " positions"]
    b: UInt64[np.ndarray, " channels"]
    t: UInt64[np.ndarray, " inputs"]


def field_elements(count: int, *, rng: Csprng) -> UInt64[np.ndarray, " count"]:
    """Uniform elements of the field, by rejection."""
    found = np.empty(0, np.uint64)
    while len(found) < count:
        words = np.frombuffer(rng.random_bytes(8 * (count - len(found))), np.uint64)
        words = words & np.uint64(2**52 - 1)
        found = np.concatenate([found, words[words < P52]])
    return found


def draw(linear: LinearMap, *, rng: Csprng) -> CheckVectors:
    """Fresh check vectors of a linear map."""
    geometry = linear.geometry
    a = field_elements(geometry.out_size[0] * geometry.out_size[1], rng=rng)
    b = field_elements(geometry.out_channels, rng=rng)
    t = np.empty(geometry.in_elements, np.uint64)
    _native.freivalds_adjoint(geometry.to_tuple(), linear.weights, a, b, t)
    return CheckVectors(a, b, t)
