"""Inner products and element-wise functions by one-time pads, as a scheme on plain matrices.

It stands beside `ddh` and `lwe` (`scheme.InnerProduct`) and is the pads of `cloister.ring.pads`.
Its element-wise functions are there for completeness: a party that knows the operand y of x + y, x
- y, x * y or x / y computes x from the answer, so a key for a known operand is plain decryption, in
this back end as in every other (the paper's labels P - Y included).
"""

import operator
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.base.rng import KEY_BYTES, Csprng
from cloister.errors import EncryptionError, FunctionError, RangeError, ShapeError
from cloister.published.mask_keys import (
    MaskCiphertexts,
    MaskElementCiphertexts,
    MaskElementKey,
    MaskEncryptionKey,
    MaskFunctionKey,
    MaskKeys,
    MaskMasterKey,
)
from cloister.published.scheme import (
    Bounds,
    Keys,
    Op,
    check_bounds,
    check_matrix,
    check_pair,
    exact_quotient,
)
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.pads import blind, expand, forward, unblind

_VECTOR_DOMAIN = 2
_ELEMENT_DOMAIN = 3
_RING_LIMIT = 2**31
_SMALL = 4096
"""Below this many products NumPy's wrapping loop beats preparing a kernel."""


def setup(dim: int, *, x_bound: int, y_bound: int, rng: Csprng) -> MaskKeys:
    """A fresh mask key for vectors of `dim` entries.

    Domain   dim * x_bound * y_bound and x_bound + y_bound below 2^31: answers do not wrap
    Raises   RangeError
    """
    bounds = check_bounds(Bounds(dim, x_bound, y_bound), limit=_RING_LIMIT, back_end="mask")
    if x_bound + y_bound >= _RING_LIMIT:
        raise RangeError("mask: x_bound + y_bound must be below 2^31; encode with fewer bits")
    key = rng.random_bytes(KEY_BYTES)
    return Keys(MaskMasterKey(key, bounds), MaskEncryptionKey(key, bounds), bounds)


def encrypt(
    encryption: MaskEncryptionKey, x: Int64[np.ndarray, "n dim"], *, rng: Csprng
) -> MaskCiphertexts:
    """Blind n vectors under fresh sample numbers; `rng` is not used, the pads are the key's.

    Raises ShapeError, RangeError.
    """
    bounds, x = encryption.bounds, np.asarray(x)
    check_matrix("mask: x", x, bound=bounds.x_bound, columns=bounds.dim)
    ids = encryption.reserve(x.shape[0])
    return MaskCiphertexts(blind(encryption.key, x, ids, domain=_VECTOR_DOMAIN), ids)


def keygen(
    master: MaskMasterKey,
    y: Int64[np.ndarray, "k dim"],
    *,
    ciphertexts_ids: Int64[np.ndarray, " n"] | None = None,
) -> MaskFunctionKey:
    """The key of k vectors for the named samples: y and M y.

    Raises ShapeError, RangeError, FunctionError (no samples named).
    """
    if ciphertexts_ids is None:
        raise FunctionError("mask: a key is bound to samples; pass ciphertexts_ids")
    y, ids = np.array(y), np.array(ciphertexts_ids)  # what is checked is what is computed
    check_matrix("mask: y", y, bound=master.bounds.y_bound, columns=master.bounds.dim)
    pads = expand(master.key, ids, (master.bounds.dim,), domain=_VECTOR_DOMAIN)
    return MaskFunctionKey(y, ids, _products(pads, y))


def decrypt(
    public: Bounds, key: MaskFunctionKey, ciphertexts: MaskCiphertexts
) -> Int64[np.ndarray, "n k"]:
    """Every inner product: P y - M y.

    Error    none within the bounds of `setup`
    Raises   EncryptionError when the key is for other samples
    """
    _check_samples(key.ids, ciphertexts.ids)
    if ciphertexts.values.shape[1:] != (public.dim,):
        raise EncryptionError(f"mask: these ciphertexts are not of dimension {public.dim}")
    return unblind(_products(ciphertexts.values, key.y), key.term)


def _products(
    values: UInt32[np.ndarray, "n dim"], y: Int64[np.ndarray, "k dim"]
) -> UInt32[np.ndarray, "n k"]:
    """values @ y^T mod 2^32, by the kernel of the layers where it pays and fits."""
    (n, dim), k = values.shape, y.shape[0]
    small = n * k * dim <= _SMALL
    if small or np.abs(y).max() >= 2**15:
        return np.asarray(values @ y.T.astype(np.uint32))
    linear = LinearMap(Geometry((1, 1), dim, (1, 1), k), y.astype(np.int16).reshape(k, 1, 1, dim))
    return forward(linear, values.reshape(n, 1, 1, dim)).reshape(n, k)


def _check_samples(wanted: Int64[np.ndarray, " n"], given: Int64[np.ndarray, " n"]) -> None:
    if not np.array_equal(wanted, given):
        raise EncryptionError("mask: the key is bound to other samples; ask for these ones")


# ---- element-wise


def encrypt_elements(
    encryption: MaskEncryptionKey, x: Int64[np.ndarray, "a b"], *, rng: Csprng
) -> MaskElementCiphertexts:
    """Blind a matrix, a row a sample; `rng` is not used, the pads are the key's.

    Raises ShapeError, RangeError.
    """
    x = np.asarray(x)
    check_matrix("mask: x", x, bound=encryption.bounds.x_bound)
    ids = encryption.reserve(x.shape[0])
    return MaskElementCiphertexts(blind(encryption.key, x, ids, domain=_ELEMENT_DOMAIN), ids)


_TERMS: dict[Op, Callable[[UInt32[np.ndarray, "a b"], UInt32[np.ndarray, "a b"]], object]] = {
    "+": operator.sub,
    "-": operator.add,
    "*": operator.mul,
    "/": lambda pads, _: pads,
}
"""What is subtracted from P (from y P for a product) to leave x + y, x - y, x * y and x."""


def keygen_elements(
    master: MaskMasterKey,
    op: Op,
    y: Int64[np.ndarray, "a b"],
    *,
    commitments: Int64[np.ndarray, " a"],
) -> MaskElementKey:
    """The key of one operation with a known operand: equivalent to the pads themselves.

    Raises ShapeError, RangeError, FunctionError (an unknown operation).
    """
    if op not in _TERMS:
        raise FunctionError(f"mask: an operation is one of {', '.join(_TERMS)}, not {op!r}")
    y, ids = np.array(y), np.array(commitments)  # what is checked is what is computed
    check_matrix("mask: y", y, bound=master.bounds.y_bound)
    check_pair("mask: y", y, ids)
    pads = expand(master.key, ids, y.shape[1:], domain=_ELEMENT_DOMAIN)
    term = np.asarray(_TERMS[op](pads, y.astype(np.uint32)))
    return MaskElementKey(op, y, ids, term)


def decrypt_elements(
    public: Bounds, key: MaskElementKey, ciphertexts: MaskElementCiphertexts
) -> Int64[np.ndarray, "a b"]:
    """x + y, x - y, x * y, or the exact quotient of x by y.

    Raises EncryptionError (a key for other rows), ShapeError, RangeError (y does not divide).
    """
    _check_samples(key.ids, ciphertexts.ids)
    if key.y.shape != ciphertexts.values.shape:
        raise ShapeError(
            f"mask: the key is for {key.y.shape}, the ciphertext is {ciphertexts.values.shape}"
        )
    values = ciphertexts.values
    if key.op == "*":
        values = np.asarray(operator.mul(values, key.y.astype(np.uint32)))
    found = unblind(values, key.term)
    return exact_quotient(found, key.y) if key.op == "/" else found
