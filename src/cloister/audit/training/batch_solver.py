"""Attacks that join samples: batches from gradients, and everything linear at once.

A dense layer's weight gradient is delta^T X. The server knows delta, so one step with as many
hidden units as samples is a square system for the whole batch; narrower layers only need more
steps over the same samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse.linalg import LinearOperator, lsmr

from cloister.audit.training.functionals import gather, scatter
from cloister.audit.training.prior import Prior
from cloister.authority.request_log import Release
from cloister.errors import InputError
from cloister.ring.linear import Geometry

LARGEST_UNION = 4096
"""Samples whose gradients are solved together."""
LARGEST_JOINT = 400_000
"""Unknowns of the joint attack."""


class BatchSolution(NamedTuple):
    """Reconstructed samples, one row per id; `rank` of the `len(ids)` samples' coefficients."""

    ids: Int64[np.ndarray, " n"]
    x: Float64[np.ndarray, "n dim"]
    rank: int

    @property
    def determined(self) -> bool:
        """Whether the releases alone admit no other samples."""
        return self.rank == len(self.ids)


def is_dense(geometry: Geometry) -> bool:
    """Whether every output of the layer reads the whole sample."""
    return geometry.out_size == (1, 1) and geometry.weight_shape[1:] == geometry.in_shape


def gradient_batches(releases: Sequence[Release], prior: Prior) -> BatchSolution | None:
    """Samples from the weight gradients of a dense layer, or None when there are none.

    Tries every single step first, then all steps together over the union of their samples.
    """
    dense = [r for r in releases if r.kind == "gradient" and r.geometry and is_dense(r.geometry)]
    best: BatchSolution | None = None
    for release in dense:
        found = _solve([release], prior)
        if best is None or found.rank / len(found.ids) > best.rank / len(best.ids):
            best = found
        if found.determined:
            return found
    union = {i for release in dense for i in release.ids.tolist()}
    if len(dense) > 1 and len(union) <= LARGEST_UNION:
        joined = _solve(dense, prior)
        if best is None or joined.rank / len(joined.ids) > best.rank / len(best.ids):
            best = joined
    return best


def _solve(releases: Sequence[Release], prior: Prior) -> BatchSolution:
    """Least squares for D X = G, where D holds every step's delta^T in its samples' columns."""
    ids = np.unique(np.concatenate([release.ids for release in releases]))
    blocks, answers = [], []
    for release in releases:
        delta = release.functional.reshape(len(release.ids), -1).astype(np.float64)
        block = np.zeros((delta.shape[1], len(ids)))
        # A sample that occurs twice in a batch counts twice.
        np.add.at(block.T, np.searchsorted(ids, release.ids), delta)
        scale = np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1.0)
        blocks.append(block / scale)
        answers.append(release.values.reshape(delta.shape[1], -1) / scale)
    d, g = np.concatenate(blocks), np.concatenate(answers)
    step, _, rank, _ = np.linalg.lstsq(d, g - d @ np.tile(prior.mean, (len(ids), 1)), rcond=1e-9)
    x = prior.mean + step
    return BatchSolution(ids, np.rint(x) if rank == len(ids) else x, int(rank))


def joint_solve(releases: Sequence[Release], prior: Prior) -> BatchSolution | None:
    """All forward and gradient releases at once, in the norm of the prior's mean.

    What a ledger counts in separate columns, an attacker adds up. Iterative least squares (LSMR)
    over the samples of as many releases as fit; None when there are none. `rank` is 0: unknown.
    """
    used: list[Release] = []
    union: set[int] = set()
    for release in releases:
        wider = union | set(release.ids.tolist())
        if len(wider) * prior.dim <= LARGEST_JOINT:
            used.append(release)
            union = wider
    if not used:
        return None
    ids = np.array(sorted(union), np.int64)
    places = [np.searchsorted(ids, release.ids) for release in used]
    scales = [_scale(release) for release in used]
    size = (sum(release.values.size for release in used), len(ids) * prior.dim)

    def forwards(flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(len(ids), -1)
        parts = [
            _apply(r, x[at]).ravel() / s for r, at, s in zip(used, places, scales, strict=True)
        ]
        return np.concatenate(parts)

    def backwards(flat: np.ndarray) -> np.ndarray:
        x, offset = np.zeros((len(ids), prior.dim)), 0
        for r, at, s in zip(used, places, scales, strict=True):
            values = flat[offset : offset + r.values.size].reshape(r.values.shape) / s
            np.add.at(x, at, _transpose(r, values))
            offset += r.values.size
        return x.ravel()

    answers = np.concatenate([r.values.ravel() / s for r, s in zip(used, scales, strict=True)])
    start = np.tile(prior.mean, len(ids))
    operator = LinearOperator(size, matvec=forwards, rmatvec=backwards, dtype=np.float64)
    found = lsmr(operator, answers, atol=1e-12, btol=1e-12, conlim=1e12, maxiter=1500, x0=start)
    x = np.clip(found[0], prior.low, prior.high).reshape(len(ids), -1)
    return BatchSolution(ids, x, 0)


def evaluate(release: Release, x: Float64[np.ndarray, "n dim"]) -> Float64[np.ndarray, " k"]:
    """The answer that a forward or gradient release should have given of its samples."""
    return np.asarray(_apply(release, x).ravel())


def _scale(release: Release) -> float:
    return max(float(np.linalg.norm(release.functional.astype(np.float64))), 1.0)


def _geometry(release: Release) -> Geometry:
    if release.geometry is None:
        raise InputError("audit: label releases carry no linear map")
    return release.geometry


def _apply(release: Release, x: Float64[np.ndarray, "n dim"]) -> np.ndarray:
    geometry = _geometry(release)
    weights = release.functional.astype(np.float64)
    found = gather(geometry, x)
    if release.kind == "forward":
        return found @ weights.reshape(geometry.out_channels, -1).T
    delta = weights.reshape(*found.shape[:2], geometry.out_channels)
    return np.tensordot(delta, found, ((0, 1), (0, 1)))


def _transpose(release: Release, values: np.ndarray) -> Float64[np.ndarray, "n dim"]:
    geometry = _geometry(release)
    weights = release.functional.astype(np.float64)
    outputs = geometry.out_channels
    if release.kind == "forward":
        back = values.reshape(len(release.ids), -1, outputs) @ weights.reshape(outputs, -1)
    else:
        delta = weights.reshape(len(release.ids), -1, outputs)
        back = delta @ values.reshape(outputs, -1)
    return scatter(geometry, back)
