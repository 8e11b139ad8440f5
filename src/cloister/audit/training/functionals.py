"""Linear maps as the attacker uses them: gathers, sparse matrices and their transposes."""

from functools import lru_cache

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

from cloister.authority.request_log import Release
from cloister.errors import InputError
from cloister.ring.linear import Geometry


@lru_cache(maxsize=64)
def patches(geometry: Geometry) -> Int64[np.ndarray, "p k"]:
    """Which input element every output position reads for every weight; -1 is padding.

    Raises   InputError for grouped maps
    """
    if geometry.groups != 1:
        raise InputError(f"audit: a grouped first layer ({geometry.groups}) is not attacked yet")
    taps = [_axis(geometry, axis) for axis in (0, 1)]
    rows, columns = taps[0][:, None, :, None], taps[1][None, :, None, :]
    at = rows * geometry.in_size[1] + columns
    at = np.where((rows < 0) | (columns < 0), -1, at)[..., None]
    channels = np.arange(geometry.in_channels)
    index = np.where(at < 0, -1, at * geometry.in_channels + channels)
    positions = geometry.out_size[0] * geometry.out_size[1]
    return index.reshape(positions, -1).astype(np.int64)


def _axis(geometry: Geometry, axis: int) -> Int64[np.ndarray, "out k"]:
    out = np.arange(geometry.out_size[axis])[:, None]
    k = np.arange(geometry.kernel[axis])[None, :]
    at = out * geometry.stride[axis] + k * geometry.dilation[axis] - geometry.pad[axis]
    up = geometry.upsample[axis]
    inside = (at >= 0) & (at % up == 0) & (at // up < geometry.in_size[axis])
    return np.where(inside, at // up, -1)


def rows_of(release: Release) -> scipy.sparse.csr_matrix:
    """The functionals of a forward release as rows over one flattened sample.

    Shapes   result: (out_elements, in_elements), in the order of the flattened answer (p, o)
    Raises   InputError for another kind of release
    """
    geometry = release.geometry
    if release.kind != "forward" or geometry is None:
        raise InputError(f"audit: a {release.kind} release has no rows of its own")
    index = patches(geometry)
    weights = release.functional.reshape(geometry.out_channels, -1).astype(np.float64)
    positions, taps = index.shape
    outputs = geometry.out_channels
    rows = np.arange(positions * outputs).reshape(positions, outputs, 1)
    shape = (positions, outputs, taps)
    data = np.broadcast_to(weights[None], shape)
    columns = np.broadcast_to(index[:, None, :], shape)
    used = columns >= 0
    triples = (data[used], (np.broadcast_to(rows, shape)[used], columns[used]))
    matrix = scipy.sparse.csr_matrix(
        triples, shape=(positions * outputs, geometry.in_elements), dtype=np.float64
    )
    # A row of zeros asks for nothing.
    matrix.eliminate_zeros()
    return matrix


def gather(geometry: Geometry, x: Float64[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n p k"]:
    """The patches of flattened samples, padding as zeros."""
    padded = np.concatenate([x, np.zeros((len(x), 1))], axis=1)
    return padded[:, patches(geometry)]


def scatter(
    geometry: Geometry, values: Float64[np.ndarray, "n p k"]
) -> Float64[np.ndarray, "n dim"]:
    """Transpose of `gather`."""
    index = patches(geometry)
    flat = np.where(index < 0, geometry.in_elements, index).ravel()
    out = np.zeros((len(values), geometry.in_elements + 1))
    for sample, one in zip(out, values.reshape(len(values), -1), strict=True):
        sample += np.bincount(flat, one, minlength=geometry.in_elements + 1)
    return out[:, :-1]
