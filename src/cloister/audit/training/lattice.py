"""Integer decoding: a few exact answers with large weights name one small-integer sample.

Rank is not information. One answer of a functional with 15-bit weights carries some twenty bits,
and pixels are small integers: as soon as the answers' bits exceed the entropy of the sample, one
integer point fits, and lattice reduction finds it while the dimension is small. The radix-packed
key (1, 101, 101^2) is the simplest case of it.

The search is the textbook one: a basis of the integer kernel, reduced by LLL in the metric of the
attacker's prior, and Babai's nearest plane from one particular solution. Its result satisfies every
equation, or is None.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from cloister.audit.training.prior import Prior
from cloister.errors import RangeError

LARGEST_LATTICE = 64
"""Elements of the largest sample: LLL here is written for clarity."""
MAX_SWAPS = 60_000
DELTA = 0.98
LARGEST_ENTRY = 2**40


class _Stage(NamedTuple):
    """One equation: how to satisfy it without disturbing those before, and what stays free."""

    equation: int
    pivot: Int64[np.ndarray, " dim"]
    step: int
    free: "_Lattice"


class _Lattice:
    """A basis, and what Babai's method needs of it."""

    def __init__(
        self, basis: Int64[np.ndarray, "m dim"], metric: Float64[np.ndarray, "dim dim"]
    ) -> None:
        self.basis, self._metric = basis, metric
        self._factors = np.linalg.qr((basis @ metric).T)

    def nearest(
        self, point: Int64[np.ndarray, " dim"], centre: Float64[np.ndarray, " dim"]
    ) -> Int64[np.ndarray, " dim"]:
        """The point, moved by lattice vectors as near to a centre as Babai's planes bring it."""
        q, r = self._factors
        for i in range(len(self.basis) - 1, -1, -1):
            along = ((point - centre) @ self._metric) @ q[:, i]
            point = point - int(np.rint(along / r[i, i])) * self.basis[i]
        return point


class IntegerDecoder:
    """Decodes any number of samples that answered the same functionals.

    Error    Babai's nearest plane is exact when the answers leave one plausible point, and a good
             guess among several otherwise; the score decides which it was
    Source   Lenstra, Lenstra, Lovász (1982); Babai (1986)
    Raises   RangeError when the sample is too large for this search, or the equations grow too big
    """

    def __init__(self, rows: Int64[np.ndarray, "k dim"], prior: Prior) -> None:
        if prior.dim > LARGEST_LATTICE:
            raise RangeError(f"audit: integer decoding takes at most {LARGEST_LATTICE} elements")
        self._rows, self._prior = rows, prior
        plain = np.eye(prior.dim)
        basis = np.eye(prior.dim, dtype=np.int64)
        self._stages: list[_Stage] = []
        for index, row in enumerate(rows):
            products = basis @ row
            if not products.any():
                continue  # follows from the rows before it
            basis, products = _concentrate(basis, products)
            pivot, basis = basis[-1], reduce(basis[:-1], plain)
            if np.abs(basis).max(initial=0) > LARGEST_ENTRY:
                raise RangeError("audit: the equations' integer kernel is too large to search")
            self._stages.append(_Stage(index, pivot, int(products[-1]), _Lattice(basis, plain)))
        metric = _metric(prior)
        self._kernel = _Lattice(reduce(basis, metric), metric)

    def decode(self, answers: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " dim"] | None:
        """The integer sample with these answers that the prior likes best, or None."""
        origin = np.zeros(self._prior.dim)
        point = np.zeros(self._prior.dim, np.int64)
        for stage in self._stages:
            missing = int(answers[stage.equation] - self._rows[stage.equation] @ point)
            if missing % stage.step:
                return None
            point = stage.free.nearest(point + (missing // stage.step) * stage.pivot, origin)
        point = self._kernel.nearest(point, self._prior.mean)
        return point if np.array_equal(self._rows @ point, answers) else None


class NoisyDecoder:
    """Decodes samples whose answers carry noise: the most likely integer point, nearly.

    With Gaussian prior and noise, minus twice the log-likelihood is a quadratic form around the
    posterior mean. Babai's nearest plane in a basis reduced for that form finds an integer point
    near to it; where the answers leave one plausible point, that one.
    """

    def __init__(self, rows: Int64[np.ndarray, "k dim"], prior: Prior, *, width: float) -> None:
        if prior.dim > LARGEST_LATTICE:
            raise RangeError(f"audit: integer decoding takes at most {LARGEST_LATTICE} elements")
        metric = _metric(prior)
        self._prior, self._certainty = prior, metric @ metric.T
        self._weighted = rows.astype(np.float64).T * (12 / width**2)
        self._form = self._certainty + self._weighted @ rows
        factor = np.linalg.cholesky(self._form)
        self._lattice = _Lattice(reduce(np.eye(prior.dim, dtype=np.int64), factor), factor)

    def decode(self, answers: Float64[np.ndarray, " k"]) -> Int64[np.ndarray, " dim"]:
        """The integer sample that explains the answers best."""
        right = self._certainty @ self._prior.mean + self._weighted @ answers
        centre = np.linalg.solve(self._form, right)
        found = self._lattice.nearest(np.zeros(self._prior.dim, np.int64), centre)
        inside: Int64[np.ndarray, " dim"] = np.clip(
            found, int(self._prior.low), int(self._prior.high)
        )
        return inside


def _metric(prior: Prior) -> Float64[np.ndarray, "dim dim"]:
    """L with |v L|^2 = v C^-1 v^T, so that distances are log-likelihoods."""
    if prior.covariance is None:
        return np.eye(prior.dim) / max(prior.high - prior.low, 1.0)
    inverse = np.linalg.inv(prior.covariance)
    metric: Float64[np.ndarray, "dim dim"] = np.linalg.cholesky((inverse + inverse.T) / 2)
    return metric


def _concentrate(
    basis: Int64[np.ndarray, "m dim"], products: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, "m dim"], Int64[np.ndarray, " m"]]:
    """Euclid's algorithm on the products: all zero but the last, by moves that keep the lattice.

    The largest product is reduced by the second largest, which keeps the quotients, and with them
    the vectors, small.
    """
    basis, products = basis.copy(), products.copy()
    while True:
        order = np.argsort(np.abs(products), kind="stable")
        largest, second = int(order[-1]), int(order[-2]) if len(order) > 1 else -1
        if second < 0 or products[second] == 0:
            break
        quotient = int(np.rint(products[largest] / products[second]))
        basis[largest] -= quotient * basis[second]
        products[largest] -= quotient * products[second]
    keep = [i for i in range(len(products)) if i != largest] + [largest]
    return basis[keep], products[keep]


def reduce(
    basis: Int64[np.ndarray, "m dim"], metric: Float64[np.ndarray, "dim dim"]
) -> Int64[np.ndarray, "m dim"]:
    """An LLL-reduced basis of the same lattice in the given metric.

    Error    floating-point Gram-Schmidt, orthogonalised twice per vector; after MAX_SWAPS
             exchanges the basis is returned as far as it is reduced
    """
    basis = basis.copy()
    vectors = basis @ metric
    ortho, norms = np.zeros_like(vectors), np.ones(len(basis))
    k = swaps = 0
    while k < len(basis):
        for _ in range(8):  # once more while the coefficients were too large for one pass
            if not _shorten(basis, vectors, ortho, norms, k):
                break
            vectors[k] = basis[k] @ metric
        rest = vectors[k] - ((vectors[k] @ ortho[:k].T) / norms[:k]) @ ortho[:k]
        rest -= ((rest @ ortho[:k].T) / norms[:k]) @ ortho[:k]
        ortho[k], norms[k] = rest, max(float(rest @ rest), 1e-30)
        along = float(vectors[k] @ ortho[k - 1]) / norms[k - 1] if k else 0.0
        if k and swaps < MAX_SWAPS and norms[k] < (DELTA - along * along) * norms[k - 1]:
            basis[[k - 1, k]] = basis[[k, k - 1]]
            vectors[[k - 1, k]] = vectors[[k, k - 1]]
            swaps += 1
            k -= 1
        else:
            k += 1
    return basis


def _shorten(
    basis: Int64[np.ndarray, "m dim"],
    vectors: Float64[np.ndarray, "m dim"],
    ortho: Float64[np.ndarray, "m dim"],
    norms: Float64[np.ndarray, " m"],
    k: int,
) -> bool:
    """Size-reduce vector k by those before it; whether anything changed."""
    changed = False
    current = vectors[k].copy()
    for j in range(k - 1, -1, -1):
        q = int(np.rint(current @ ortho[j] / norms[j]))
        if q:
            basis[k] -= q * basis[j]
            current -= q * vectors[j]
            changed = True
    return changed
