"""FEIP: inner products with encrypted vectors.

    selective   ct = (g^r, h_j^r g^x_j)             h_j = g^s_j           key  sum_j y_j s_j
    adaptive    ct = (g^r, h^r, h_j^r g^x_j)        h_j = g^s_j h^t_j     keys sum_j y_j (s_j, t_j)
    decryption  prod_j ct_j^y_j / ct_0^key = g^<x, y>, whose logarithm is small

*Selective*: hides, if DDH is hard, what the keys do not reveal of vectors chosen before the
public key is known (Abdalla, Bourse, De Caro, Pointcheval, PKC 2015). *Adaptive*: of vectors
chosen at any time (Agrawal, Libert, Stehle, CRYPTO 2016, section 3, Damgard's encryption). Neither
is post-quantum, and neither hides whether two keys are equal, nor y.

A key serves every ciphertext, past and future. `dim` independent keys determine s: with them
everything under this public key is open. So the master key counts the rank of what it has given
keys for, and `keygen` refuses what exceeds its budget (`cloister.published.released`). Ciphertexts
can be changed by anyone who sees them (x + d, multiples): authenticity is the data set file's
business, not this module's.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from cloister.base.rng import Csprng
from cloister.errors import EncryptionError
from cloister.published.ddh.groups import GroupName
from cloister.published.ddh.keys import (
    DdhCiphertexts,
    DdhEncryptionKey,
    DdhFunctionKey,
    DdhMasterKey,
)
from cloister.published.ddh.parameters import DdhPublic, Variant
from cloister.published.released import Released
from cloister.published.scheme import Bounds, Keys, check_matrix

DdhKeys: TypeAlias = Keys[DdhMasterKey, DdhEncryptionKey, DdhPublic]


def setup(
    dim: int,
    *,
    x_bound: int,
    y_bound: int,
    rng: Csprng,
    group: GroupName = "curve25519",
    variant: Variant = "selective",
    budget: int | None = None,
    allow_unbounded_leakage: bool = False,
) -> DdhKeys:
    """The authority's secret and the clients' public key, for FEIP and FEBO.

    budget   independent functions that keys may be made for, below dim; None: dim - 1
    allow_unbounded_leakage   the paper's mode: any number of them, so that every ciphertext is open

    Domain   dim * x_bound * y_bound below 2^40 (curve25519) or 2^30 (ffdhe2048): answers are found
             by search
    Secret   the result's `master`
    Raises   RangeError, InputError, UnsupportedError (ffdhe2048 without gmpy2)
    """
    public = DdhPublic(group, variant, Bounds(dim, x_bound, y_bound))
    g = public.group
    scalars = g.random_scalars(public.secrets * dim + 1, rng=rng)
    bases = g.generator[None]
    if variant == "adaptive":
        # No party keeps the logarithm of h; the holder of the master key does not need it.
        bases = np.concatenate([bases, g.powers(bases, g.random_scalars(1, rng=rng))[0]])
    columns = scalars[:-1].reshape(public.secrets, dim, g.scalar_bytes).swapaxes(0, 1)
    points = np.broadcast_to(bases, (dim, *bases.shape))
    h = g.sums(points, columns)
    last = g.powers(g.generator[None], scalars[-1:])[0]
    encryption = DdhEncryptionKey(public, np.concatenate([bases, h, last]))
    released = Released(
        dim, budget=budget, allow_unbounded_leakage=allow_unbounded_leakage, name="ddh", rng=rng
    )
    return Keys(DdhMasterKey(public, scalars, released), encryption, public)


def encrypt(
    encryption: DdhEncryptionKey, x: Int64[np.ndarray, "n dim"], *, rng: Csprng, threads: int = 1
) -> DdhCiphertexts:
    """Encrypt the rows of x.

    Shapes   x: (n, dim)
    Domain   |x| <= x_bound
    Secret   x.  Time: independent of values.
    Raises   ShapeError, RangeError
    """
    x = np.array(x)
    public, g = encryption.public, encryption.public.group
    bound = public.bounds.x_bound
    check_matrix("x", x, bound=bound, columns=public.bounds.dim)
    plus = np.zeros((len(x), len(encryption.inner)), np.int64)
    plus[:, public.secrets :] = x
    r = g.random_scalars(len(x), rng=rng)
    return DdhCiphertexts(
        public, g.powers(encryption.inner, r, plus=plus, bound=bound, threads=threads)
    )


def keygen(
    master: DdhMasterKey,
    y: Int64[np.ndarray, "k dim"],
    *,
    ciphertexts_ids: Int64[np.ndarray, " n"] | None = None,
) -> DdhFunctionKey:
    """The key of k functions; `ciphertexts_ids` is not needed: it serves every ciphertext.

    Domain   |y| <= y_bound
    Secret   master.  Public: y.
    Raises   ShapeError, RangeError, BudgetError (more independent functions than the budget)
    """
    # A private copy, of no subclass: what is charged is what the key is made for.
    y = np.array(y)
    public, g = master.public, master.public.group
    check_matrix("y", y, bound=public.bounds.y_bound, columns=public.bounds.dim)
    master.released.charge(y)
    scalars = [g.combine(master.inner(which), y) for which in range(public.secrets)]
    return DdhFunctionKey(public, y, np.stack(scalars, axis=1))


def decrypt(
    public: DdhPublic, key: DdhFunctionKey, ciphertexts: DdhCiphertexts, *, threads: int = 1
) -> Int64[np.ndarray, "n k"]:
    """X Y^T, exactly.

    Public   everything, the result included: time depends on all of it
    Error    none
    Raises   EncryptionError for keys or ciphertexts of other parameters; RangeError where an
             answer exceeds x_bound * sum |y|: another authority's key, or a changed ciphertext
    """
    if key.public != public or ciphertexts.public != public:
        raise EncryptionError("ddh: key, ciphertexts and parameters do not belong together")
    if len(key.y) == 0 or len(ciphertexts.elements) == 0:
        return np.zeros((len(ciphertexts.elements), len(key.y)), np.int64)
    bound = public.bounds.x_bound * max(1, int(np.abs(key.y).sum(axis=1).max()))
    return public.group.solve_products(
        ciphertexts.elements, key.scalars, key.y, bound=bound, threads=threads
    )
