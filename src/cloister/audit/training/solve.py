"""Attacks on single samples: exact solution, linear programming with ranges, a public prior."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float64
from scipy.optimize import linprog

from cloister.audit.training.evidence import RANK_TOLERANCE
from cloister.audit.training.prior import Prior
from cloister.errors import InputError

LARGEST_PROGRAM = 1024
"""Elements of the largest sample that linear programming is tried on."""


class Solution(NamedTuple):
    """Reconstructions, one row per sample; `rank` is that of the equations behind them.

    determined   the elements that no other samples with these values could have
    """

    x: Float64[np.ndarray, "n dim"]
    rank: int
    determined: Bool[np.ndarray, " dim"]


def linear_solve(
    rows: Float64[np.ndarray, "k dim"], answers: Float64[np.ndarray, "k n"], prior: Prior
) -> Solution:
    """The samples nearest to the prior's mean among those with the released values.

    At full rank the prior does not matter and rounding makes the answer exact.
    """
    a, b = _centred(rows, answers, prior)
    left, values, right = np.linalg.svd(a, full_matrices=False)
    rank = int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())
    spanned = right[:rank]
    x = prior.mean + ((left[:, :rank].T @ b) / values[:rank, None]).T @ spanned
    # An element is determined if its unit vector lies in the span of the functionals.
    determined = (spanned**2).sum(axis=0) > 1 - 1e-9
    return Solution(np.where(determined, np.rint(x), x), rank, determined)


def box_program(
    rows: Float64[np.ndarray, "k dim"],
    answers: Float64[np.ndarray, " k"],
    prior: Prior,
    *,
    width: float = 0.0,
) -> Float64[np.ndarray, " dim"] | None:
    """The least varying image within the range that has the released values, or None.

    width   of the noise on the values: any image whose values are as near will do

    Minimises the sum of absolute differences of neighbours, and a tenth of the sum of distances
    from the lower end of the range (most images are mostly background), by linear programming.
    """
    dim = prior.dim
    if dim > LARGEST_PROGRAM:
        return None
    differences = _differences(prior.shape)
    count = differences.shape[0]
    scale = np.maximum(np.linalg.norm(rows, axis=1), 1.0)[:, None]
    unit = scipy.sparse.identity(count)
    wide = [scipy.sparse.csr_matrix(rows / scale), scipy.sparse.csr_matrix((len(rows), count))]
    released, values = scipy.sparse.hstack(wide), answers / scale[:, 0]
    above = [
        scipy.sparse.hstack([differences, -unit]), scipy.sparse.hstack([-differences, -unit])
    ]  # fmt: skip
    limits = [np.zeros(2 * count)]
    if width:
        slack = width / 2 / scale[:, 0]
        above += [released, -released]
        limits += [values + slack, slack - values]
    found = linprog(
        np.concatenate([np.full(dim, 0.1), np.ones(count)]),
        A_ub=scipy.sparse.vstack(above),
        b_ub=np.concatenate(limits),
        A_eq=None if width else released,
        b_eq=None if width else values,
        bounds=[(prior.low, prior.high)] * dim + [(0.0, None)] * count,
        method="highs",
        options={"time_limit": 20.0},
    )
    if found.x is None:
        return None
    x: Float64[np.ndarray, " dim"] = found.x[:dim]
    return x


def prior_estimate(
    rows: Float64[np.ndarray, "k dim"],
    answers: Float64[np.ndarray, "k n"],
    prior: Prior,
    *,
    width: float = 0.0,
) -> Float64[np.ndarray, "n dim"]:
    """The most likely samples under a Gaussian fitted to public images.

    x = mu + C A^T (A C A^T + N)^+ (v - A mu), then cut to the range; N is the noise's variance.

    Raises   InputError when the prior has no covariance
    """
    if prior.covariance is None:
        raise InputError("audit: the public prior needs public images of the same kind")
    a, b = _centred(rows, answers, prior)
    spread = prior.covariance @ a.T
    scale = np.maximum(np.linalg.norm(rows, axis=1), 1.0)
    noise = np.diag(width**2 / 12 / scale**2)
    weights = np.linalg.lstsq(a @ spread + noise, b, rcond=1e-10)[0]
    x: Float64[np.ndarray, "n dim"] = np.clip(
        prior.mean + (spread @ weights).T, prior.low, prior.high
    )
    return x


def _centred(
    rows: Float64[np.ndarray, "k dim"], answers: Float64[np.ndarray, "k n"], prior: Prior
) -> tuple[Float64[np.ndarray, "k dim"], Float64[np.ndarray, "k n"]]:
    """Rows of length one, and what the answers say beyond the prior's mean."""
    scale = np.maximum(np.linalg.norm(rows, axis=1), 1.0)[:, None]
    return rows / scale, (answers - (rows @ prior.mean)[:, None]) / scale


def _differences(shape: tuple[int, int, int]) -> scipy.sparse.csr_matrix:
    """Differences of vertical and horizontal neighbours; a row of features has none."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    pairs = np.concatenate(
        [
            np.stack([index[1:].ravel(), index[:-1].ravel()], axis=1),
            np.stack([index[:, 1:].ravel(), index[:, :-1].ravel()], axis=1),
        ]
    )
    rows = np.repeat(np.arange(len(pairs)), 2)
    signs = np.tile([1.0, -1.0], len(pairs))
    return scipy.sparse.csr_matrix((signs, (rows, pairs.ravel())), shape=(len(pairs), index.size))
