"""One-time pads over Z_2^32, and the linear maps of blinded values.

Whoever blinds adds a pad to what is to be hidden, P = X + M mod 2^32, with M the AES-256-CTR stream
under a key, a number and a domain. One side computes a linear map on P alone; another one, who can
expand M, computes the same map on M. The difference is the map of what was hidden:

    A P - A M = A X          (forward)
    delta P - delta M = delta X        (weight gradient, summed over a batch)

Two protocols rest on it, with one layout of nonces, one keystream and the same kernels
(`cloister.ring.ring_map.RingMap`):

    inference (Slalom)   number: pad id, domain: node; the trusted side keeps A M
                         (`cloister.trusted.pads.maker`)
    training             number: sample, domain: data or label; the server is given A M, and so
                         learns A X and nothing else

Whatever A X gives away to a server is leaked by design, and the authority's ledger counts it.

A key of training is bound to the samples named in it: it is a function of their pads. The pads are
a pseudorandom function of (key, number, domain), so a view of P and of any set of released terms is
simulated from the released values alone, whoever chooses the maps and whenever (adaptively).
No answer is checked here and ciphertexts carry no tag: a data set file authenticates them.
"""

import math
import operator
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int16, Int64, UInt32

import cloister.base._native as native
from cloister.base.rng import KEY_BYTES, keystream
from cloister.errors import InputError, RangeError, ShapeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap
from cloister.ring.transpose import transpose

DATA_DOMAIN = 0
LABEL_DOMAIN = 1

_PACKED_BYTES = 2**20
"""Packed gradients of one piece of a batch: they stay in the cache and their memory is reused."""
_LANES = 32


def nonce(number: int, domain: int) -> bytes:
    """The nonce of one pad: 8 bytes of its number, 4 of the domain, big-endian.

    Raises RangeError.
    """
    if not 0 <= number < 2**63 or not 0 <= domain < 2**32:
        raise RangeError(f"pad: number {number} or domain {domain} is out of range")
    return number.to_bytes(8, "big") + domain.to_bytes(4, "big")


def expand_into(key: bytes, number: int, *, domain: int, out: UInt32[np.ndarray, " words"]) -> None:
    """Overwrite `out` with one pad.

    Secret   key and out
    Raises   RangeError
    """
    under = nonce(number, domain)
    if native.isa() == "portable":  # a CPU without AES instructions
        out[:] = keystream(key, under, len(out))
    else:
        native.aes_ctr_fill(key, under, 0, out)


def expand(
    key: bytes, ids: Int64[np.ndarray, " n"], shape: tuple[int, ...], *, domain: int
) -> UInt32[np.ndarray, "n ..."]:
    """The pads M of these numbers.

    Secret   key and result; a pad serves one plaintext, for ever
    Source   as `cloister.base.rng.keystream` under `nonce`
    Raises   RangeError, ShapeError
    """
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise ShapeError(f"pad: ids must be an int64 vector, got {ids.dtype} {ids.shape}")
    if len(key) != KEY_BYTES:
        raise RangeError(f"pad: a key has {KEY_BYTES} bytes, got {len(key)}")
    out = np.empty((ids.shape[0], *shape), np.uint32)
    rows = out.reshape(ids.shape[0], math.prod(shape))
    for row, number in zip(rows, ids.tolist(), strict=True):
        expand_into(key, number, domain=domain, out=row)
    return out


def blind(
    key: bytes,
    x: Int[np.ndarray, "n ..."],
    ids: Int64[np.ndarray, " n"],
    *,
    domain: int,
) -> UInt32[np.ndarray, "n ..."]:
    """The ciphertexts P = X + M mod 2^32.

    Shapes   x: (n, *shape), any signed integer type; ids: one number for each sample
    Secret   key, x.  Public: result.  A (key, id, domain) must never blind two plaintexts: the
             difference of the two ciphertexts would be the difference of the samples.
    Raises   ShapeError, RangeError
    """
    # Plain arrays: a masked array would hide from the checks what is blinded all the same.
    x, ids = np.asarray(x), np.asarray(ids)
    if not np.issubdtype(x.dtype, np.signedinteger):
        raise ShapeError(f"pad: x must be of a signed integer type, got {x.dtype}; encode it")
    if x.ndim < 2 or ids.shape != x.shape[:1]:
        raise ShapeError(f"pad: one id for each sample, got {ids.shape} for x {x.shape}")
    if np.unique(ids).size != ids.size:
        raise RangeError("pad: an id is repeated; two samples under one pad cancel it")
    blinded = expand(key, ids, x.shape[1:], domain=domain)
    # Two's complement: the conversion is the residue modulo 2^32, and the sum wraps.
    blinded += x.astype(np.uint32)
    return blinded


def forward(
    linear: LinearMap, values: UInt32[np.ndarray, "n h w c"], *, threads: int = 1
) -> UInt32[np.ndarray, "n oh ow oc"]:
    """A v mod 2^32: the server's A P and the authority's A M.

    Source   the ring and kernel of Slalom's blinded layers, `cloister.trusted.pads.maker`
    Raises   ShapeError, InputError
    """
    return RingMap(linear).apply(np.ascontiguousarray(values), threads=threads)


def gradient(
    geometry: Geometry,
    delta: Int16[np.ndarray, "n oh ow oc"],
    values: UInt32[np.ndarray, "n h w c"],
    *,
    threads: int = 1,
) -> UInt32[np.ndarray, "o kh kw cg"]:
    """Sum over samples and positions of delta[i,p,o] v[i, p*stride + k*dilation - pad, c].

    Again one linear map: the samples of the batch become its channels, delta its weights, and
    stride and dilation trade places. A dense layer's is a product of matrices, which needs no
    transposes. It serves the server's delta P and the authority's delta M.

    Raises   ShapeError, InputError
    """
    n = values.shape[0]
    if values.ndim != 4 or values.shape[1:] != geometry.in_shape or values.dtype != np.uint32:
        raise ShapeError(
            f"pad gradient: values must be uint32 (n, *{geometry.in_shape}), "
            f"got {values.dtype} {values.shape}"
        )
    if delta.shape != (n, *geometry.out_shape) or delta.dtype != np.int16:
        raise ShapeError(
            f"pad gradient: delta must be int16 ({n}, *{geometry.out_shape}), "
            f"got {delta.dtype} {delta.shape}"
        )
    if threads < 1:
        raise InputError(f"pad gradient: threads must be at least 1, got {threads}")
    packed = 2 * geometry.out_size[0] * geometry.out_size[1] * max(_LANES, geometry.out_channels)
    # Even, because the kernel takes samples, its channels here, in pairs.
    step = max(2, _PACKED_BYTES // packed // 2 * 2)
    if 0 < n <= step:
        return _piece_gradient(geometry, delta, values, threads=threads)
    total = np.zeros(geometry.weight_shape, np.uint32)
    for start in range(0, n, step):
        part = slice(start, start + step)
        total += _piece_gradient(geometry, delta[part], values[part], threads=threads)
    return total


def _piece_gradient(
    geometry: Geometry,
    delta: Int16[np.ndarray, "n oh ow oc"],
    values: UInt32[np.ndarray, "n h w c"],
    *,
    threads: int,
) -> UInt32[np.ndarray, "o kh kw cg"]:
    if geometry.is_dense:
        out = np.empty((geometry.out_channels, geometry.in_elements), np.uint32)
        rows = np.ascontiguousarray(values.reshape(len(values), -1))
        deltas = np.ascontiguousarray(delta.reshape(len(delta), -1))
        native.dense_gradient(deltas, rows, out, threads)
        return out.reshape(geometry.weight_shape)
    of_group, to_group = geometry.weight_shape[3], geometry.out_channels // geometry.groups
    as_map = _gradient_map(geometry, len(delta))
    n, h, w, c = values.shape
    # With one channel, of samples or of a group, the copies behind the transposes are none.
    columns = transpose(values.reshape(n, -1)).reshape(h, w, c, n)
    columns = np.ascontiguousarray(columns.transpose(2, 0, 1, 3))
    weights = np.ascontiguousarray(delta.transpose(3, 1, 2, 0))
    parts = []
    for group in range(geometry.groups):
        outputs = slice(group * to_group, (group + 1) * to_group)
        inputs = slice(group * of_group, (group + 1) * of_group)
        part = RingMap(LinearMap(as_map, weights[outputs])).apply(columns[inputs], threads=threads)
        parts.append(_outputs_first(part))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _outputs_first(part: UInt32[np.ndarray, "cg kh kw o"]) -> UInt32[np.ndarray, "o kh kw cg"]:
    c, *inner, o = part.shape
    outputs = transpose(part.reshape(-1, o)).reshape(o, c, *inner)
    return np.ascontiguousarray(outputs.transpose(0, 2, 3, 1))


@lru_cache
def _gradient_map(geometry: Geometry, n: int) -> Geometry:
    """The map of `_piece_gradient`: the same at every step of a training."""
    return Geometry(
        geometry.in_size, n, geometry.kernel, geometry.out_channels // geometry.groups,
        kernel=geometry.out_size, stride=geometry.dilation, dilation=geometry.stride,
        upsample=geometry.upsample, pad=geometry.pad,
    )  # fmt: skip


def unblind(
    term_of_p: UInt32[np.ndarray, "..."], term_of_m: UInt32[np.ndarray, "..."]
) -> Int64[np.ndarray, "..."]:
    """A x = A P - A M mod 2^32, centred in [-2^31, 2^31).

    Domain   |A x| < 2^31, else the result is wrapped; the authority refuses maps that could exceed
    Secret   term_of_m; single use.  Error  none if the bound holds
    Raises   ShapeError
    """
    for name, term in (("ciphertext", term_of_p), ("pad", term_of_m)):
        if term.dtype != np.uint32 or term.shape != term_of_p.shape:
            raise ShapeError(
                f"pad: the {name} term must be uint32 {term_of_p.shape}, "
                f"got {term.dtype} {term.shape}"
            )
    difference = np.asarray(operator.sub(term_of_p, term_of_m))
    return difference.view(np.int32).astype(np.int64)
