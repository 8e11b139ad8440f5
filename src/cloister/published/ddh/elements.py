"""FEBO: +, -, *, / of an encrypted and a known number, entry by entry.

    encryption   commitment g^r, value h^r g^x               h = g^s
    key          + : c^s g^-y    - : c^s g^y    * : (c^s)^y    / : (c^s)^(1/y)       c = g^r
    decryption   + - : value / key    * : value^y / key    / : value^(1/y) / key     = g^(x op y)

The holder of the key of an entry, for any operation, can compute c^s from it and decrypt the entry,
because it knows the operand. FEBO hides an entry from parties without a key, and nothing from
parties with one. Its keys are not counted (`cloister.published.released` counts inner products):
making such a key is a decision to release x.

Source   Xu, Joshi, Li, "CryptoNN" (arXiv:1904.07303), section III-B; deviation: a prime-order
         group in which DDH is hard, operands and results range-checked, r uniform modulo the order
"""

from typing import get_args

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.base.rng import Csprng
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError
from cloister.published.ddh.groups import Group
from cloister.published.ddh.keys import (
    DdhElementCiphertexts,
    DdhElementKey,
    DdhEncryptionKey,
    DdhMasterKey,
)
from cloister.published.ddh.parameters import DdhPublic
from cloister.published.scheme import Op, check_matrix


def encrypt_elements(
    encryption: DdhEncryptionKey, x: Int64[np.ndarray, "a b"], *, rng: Csprng, threads: int = 1
) -> DdhElementCiphertexts:
    """Encrypt every entry of x.

    Domain   |x| <= x_bound
    Secret   x.  Time: independent of values.
    Raises   ShapeError, RangeError
    """
    x = np.array(x)
    public, g = encryption.public, encryption.public.group
    bound = public.bounds.x_bound
    check_matrix("x", x, bound=bound)
    plus = np.zeros((x.size, 2), np.int64)
    plus[:, 1] = x.reshape(-1)
    r = g.random_scalars(x.size, rng=rng)
    pairs = g.powers(encryption.elements, r, plus=plus, bound=bound, threads=threads)
    pairs = pairs.reshape(*x.shape, 2, g.element_bytes)
    return DdhElementCiphertexts(public, pairs[:, :, 0], pairs[:, :, 1])


def keygen_elements(
    master: DdhMasterKey,
    op: Op,
    y: Int64[np.ndarray, "a b"],
    *,
    commitments: UInt8[np.ndarray, "a b element_bytes"],
) -> DdhElementKey:
    """The key of x op y for the ciphertext with these commitments.

    Domain   |y| <= y_bound; for / no zero
    Secret   master.  Public: op, y, commitments: those of a registered ciphertext, which the caller
             must see to. A key for c is c^s, so a caller that chooses c freely asks for other
             entries.
    Raises   InputError for another operation, ShapeError, RangeError, EncryptionError
    """
    # Private copies, of no subclass: the secret meets only elements that were checked.
    y, commitments = np.array(y), np.array(commitments)
    public, g = master.public, master.public.group
    if op not in get_args(Op):
        raise InputError(f"ddh: the operation is one of + - * /, not {op!r}")
    bound = public.bounds.y_bound
    check_matrix("y", y, bound=bound)
    if commitments.shape != (*y.shape, g.element_bytes):
        raise ShapeError(f"ddh: y is {y.shape} and the commitments are {commitments.shape}")
    if op == "/" and not y.all():
        raise RangeError("ddh: division by zero")
    flat = np.ascontiguousarray(commitments).reshape(-1, 1, g.element_bytes)
    g.check_elements(flat, what="ddh commitments", identity=False)
    operand = y.reshape(-1)
    secret = np.broadcast_to(master.elements, (len(flat), 1, g.scalar_bytes))
    if op in ("+", "-"):
        key = g.sums(flat, secret, plus=-operand if op == "+" else operand, bound=bound)
    elif op == "*":
        products = g.combine(master.elements, operand[:, None])
        key = g.sums(flat, products[:, None])
    else:
        key = g.sums(g.sums(flat, secret)[:, None], _inverses(g, operand)[:, None])
    return DdhElementKey(public, op, y, key.reshape(commitments.shape))


def decrypt_elements(
    public: DdhPublic, key: DdhElementKey, ciphertexts: DdhElementCiphertexts, *, threads: int = 1
) -> Int64[np.ndarray, "a b"]:
    """X op Y, exactly; for / the integer q with x = q y.

    Public   everything, the result included
    Raises   EncryptionError for keys or ciphertexts of other parameters or another shape;
             RangeError where an answer is out of bounds: a quotient that is no integer, another
             ciphertext's or authority's key
    """
    if key.public != public or ciphertexts.public != public:
        raise EncryptionError("ddh: key, ciphertexts and parameters do not belong together")
    if key.elements.shape != ciphertexts.values.shape:
        raise EncryptionError("ddh: the key is of another ciphertext: the shapes differ")
    if key.y.size == 0:
        return np.zeros(key.y.shape, np.int64)
    g, bounds, operand = public.group, public.bounds, key.y.reshape(-1)
    bound = {
        "+": bounds.x_bound + bounds.y_bound,
        "-": bounds.x_bound + bounds.y_bound,
        "*": bounds.x_bound * bounds.y_bound,
        "/": bounds.x_bound,
    }[key.op]
    if key.op == "/":
        scalars = _inverses(g, operand)
    else:
        scalars = operand if key.op == "*" else np.ones_like(operand)
    found = g.solve_differences(
        ciphertexts.values.reshape(-1, g.element_bytes),
        scalars,
        key.elements.reshape(-1, g.element_bytes),
        bound=bound,
        threads=threads,
    )
    return found.reshape(key.y.shape)


def _inverses(group: Group, y: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n scalar_bytes"]:
    return group.encode_scalars([pow(int(v), -1, group.order) for v in y])
