"""Inner-product encryption from learning with errors: keys serve every ciphertext.

    encryption   C = A Z^T + E + D X          mod q = 2^b        (rows are samples)
    key of Y     Y Z                          mod q
    decryption   C Y^T - A (Y Z)^T = D X Y^T + E Y^T             then divide by D and round

Z (dim x n) is uniform and secret, shared by clients and authority (secret-key form); A (samples x
n) is public, expanded from a seed that travels with the ciphertext, sample i under nonce i; E is
discrete Gaussian. The authority may be offline: a key is a function of Y alone.

What is claimed. *Selective* security: for vectors fixed before the keys are asked for, and keys of
fewer than `dim` independent functions, the ciphertexts hide all but the function values, if LWE
with a uniform secret is hard. Z is uniform and not small so that Z + (x0 - x1) s^T is distributed
as Z, which the reduction needs; it also spreads the noise of s over E, and for that step sigma 3.2
is heuristic while sigma 2^12 (`WIDE`) covers differences of 8-bit vectors better. With `dim`
independent keys Z is the solution of a linear system and *every* ciphertext under it, past and
future, is open. `keygen` therefore counts the rank of what it has given and refuses the last
one (`cloister.published.released`). A caller who means to release as many functions as there are
inputs sets up one spare coordinate that is always zero, and has then decided to release the inputs.

Source   Abdalla, Bourse, De Caro, Pointcheval, PKC 2015 (ePrint 2015/017), secret-key form
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from cloister.base.hkdf import derive
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.errors import EncryptionError, FunctionError, ShapeError
from cloister.published import gaussian, modular
from cloister.published.lwe_keys import (
    A_DOMAIN,
    APPROXIMATE,
    EXACT,
    WIDE,
    LweEncryptionKey,
    LweMasterKey,
    LwePublic,
    Parameters,
    checked,
    uniform,
)
from cloister.published.modular import ResidueDigits
from cloister.published.released import Released
from cloister.published.scheme import Bounds, Keys, Op, check_matrix, exact_quotient
from cloister.ring.pads import expand

__all__ = [
    "APPROXIMATE",
    "EXACT",
    "WIDE",
    "Commitments",
    "LweCiphertexts",
    "LweElementCiphertexts",
    "LweElementKey",
    "LweEncryptionKey",
    "LweFunctionKey",
    "LweKeys",
    "LweMasterKey",
    "LwePublic",
    "Parameters",
    "decrypt",
    "decrypt_approximate",
    "decrypt_elements",
    "encrypt",
    "encrypt_elements",
    "encrypt_rows",
    "keygen",
    "keygen_elements",
    "rounded",
    "setup",
]

_ELEMENT_NOISE_DOMAIN = 0x4C57_455C

LweKeys: TypeAlias = Keys[LweMasterKey, LweEncryptionKey, LwePublic]


@dataclass(frozen=True, eq=False)
class LweCiphertexts:
    """n encrypted vectors and the seed of their public matrix."""

    parameters: Parameters
    seed: bytes
    values: Int64[np.ndarray, "n dim"]

    @cached_property
    def a(self) -> ResidueDigits:
        """A, one row for each sample; computed once, serves every key."""
        rows = np.arange(self.values.shape[0], dtype=np.int64)
        return uniform(self.seed, rows, self.parameters, A_DOMAIN)


@dataclass(frozen=True, eq=False)
class LweFunctionKey:
    """k vectors y and Y Z mod q, for every ciphertext under Z."""

    y: Int64[np.ndarray, "k dim"]
    yz: Int64[np.ndarray, "k n"]
    parameters: Parameters

    @cached_property
    def digits(self) -> ResidueDigits:
        """Y Z ready for products."""
        return modular.split(self.yz, self.parameters.q_bits)


def setup(
    dim: int,
    *,
    x_bound: int,
    y_bound: int,
    rng: Csprng,
    parameters: Parameters = EXACT,
    budget: int | None = None,
    allow_unbounded_leakage: bool = False,
) -> LweKeys:
    """Fresh keys for vectors of `dim` entries.

    budget   independent functions that keys may be made for, below dim; None: dim - 1
    allow_unbounded_leakage   the paper's mode: any number of them, so that every ciphertext is open

    Domain   dim * x_bound * y_bound below q / (2 D), so that an answer does not wrap
    Raises   RangeError, InputError
    """
    bounds = checked(Bounds(dim, x_bound, y_bound), parameters)
    encryption = LweEncryptionKey(rng.random_bytes(KEY_BYTES), LwePublic(bounds, parameters))
    released = Released(
        dim, budget=budget, allow_unbounded_leakage=allow_unbounded_leakage, name="lwe", rng=rng
    )
    return Keys(LweMasterKey(encryption, released), encryption, encryption.public)


def encrypt(
    encryption: LweEncryptionKey, x: Int64[np.ndarray, "n dim"], *, rng: Csprng
) -> LweCiphertexts:
    """A Z^T + E + D X for n vectors under a fresh public matrix.

    Raises ShapeError, RangeError.
    """
    # A masked array would add no noise where it is masked, and so give away Z.
    x = np.array(x)
    public = encryption.public
    check_matrix("lwe: x", x, bound=public.bounds.x_bound, columns=public.bounds.dim)
    return encrypt_rows(encryption.z, x, public.parameters, rng=rng)


def encrypt_rows(
    z: ResidueDigits, x: Int64[np.ndarray, "n dim"], parameters: Parameters, *, rng: Csprng
) -> LweCiphertexts:
    """The same under given secret rows, of values already checked."""
    blank = LweCiphertexts(parameters, rng.random_bytes(KEY_BYTES), np.zeros_like(x))
    values = modular.product(blank.a, z) + (x << np.int64(parameters.scale_bits))
    values += gaussian.noise(parameters.sigma, x.shape, rng=rng)
    return LweCiphertexts(parameters, blank.seed, modular.centre(values, parameters.q_bits))


def keygen(
    master: LweMasterKey,
    y: Int64[np.ndarray, "k dim"],
    *,
    ciphertexts_ids: Int64[np.ndarray, " n"] | None = None,
) -> LweFunctionKey:
    """Y Z for k vectors; not bound to ciphertexts, `ciphertexts_ids` is not used.

    Raises ShapeError, RangeError, BudgetError (more independent functions than the budget).
    """
    # A private copy, of no subclass: what is charged is what the key is made for.
    y = np.array(y)
    public = master.encryption.public
    check_matrix("lwe: y", y, bound=public.bounds.y_bound, columns=public.bounds.dim)
    master.released.charge(y)
    bits, z = public.parameters.q_bits, master.encryption.z
    columns = ResidueDigits(bits, z.low.T, z.high.T)
    return LweFunctionKey(y, modular.product(modular.split(y, bits), columns), public.parameters)


def decrypt(
    public: LwePublic, key: LweFunctionKey, ciphertexts: LweCiphertexts
) -> Int64[np.ndarray, "n k"]:
    """Every inner product, exactly but for a chance below 2^-40 for each.

    Raises   FunctionError when the parameters leave noise in the answers, EncryptionError
    """
    if not public.exact:
        raise FunctionError(
            f"lwe: parameters {public.parameters.name!r} are not exact for {public.bounds}; "
            "use decrypt_approximate, or EXACT with smaller bounds"
        )
    return rounded(_noisy(public, key, ciphertexts), public.parameters)


def decrypt_approximate(
    public: LwePublic, key: LweFunctionKey, ciphertexts: LweCiphertexts
) -> Float64[np.ndarray, "n k"]:
    """Every inner product with Gaussian noise of deviation `public.noise_std(norm of y)`.

    Raises EncryptionError.
    """
    noisy = _noisy(public, key, ciphertexts).astype(np.float64)
    return np.asarray(noisy / 2**public.parameters.scale_bits)


def rounded(noisy: Int64[np.ndarray, "n k"], parameters: Parameters) -> Int64[np.ndarray, "n k"]:
    """The nearest multiple of D, divided by D."""
    half = np.int64(2 ** (parameters.scale_bits - 1))
    return np.asarray((noisy + half) >> np.int64(parameters.scale_bits))


def _noisy(
    public: LwePublic, key: LweFunctionKey, ciphertexts: LweCiphertexts
) -> Int64[np.ndarray, "n k"]:
    """D X Y^T + E Y^T, centred."""
    parameters = public.parameters
    if key.parameters != parameters or ciphertexts.parameters != parameters:
        raise EncryptionError("lwe: key and ciphertexts must have the parameters of this setup")
    if ciphertexts.values.shape[1] != public.bounds.dim or key.y.shape[1] != public.bounds.dim:
        raise EncryptionError(f"lwe: key and ciphertexts are of dimension {public.bounds.dim}")
    bits = parameters.q_bits
    answers = modular.product(modular.split(ciphertexts.values, bits), modular.split(key.y, bits))
    return modular.centre(answers - modular.product(ciphertexts.a, key.digits), bits)


# ---- element-wise: a known operand makes each of these plain decryption (see `mask`)


@dataclass(frozen=True)
class Commitments:
    """What the authority needs to know of an element-wise ciphertext."""

    seed: bytes
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class LweElementCiphertexts:
    """A matrix as rows of `dim` entries, the last filled up with zeros."""

    rows: LweCiphertexts
    shape: tuple[int, int]

    @property
    def commitments(self) -> Commitments:
        """Seed and shape."""
        return Commitments(self.rows.seed, self.shape)


@dataclass(frozen=True, eq=False)
class LweElementKey:
    """One operation, its operand and what is subtracted from this ciphertext."""

    op: Op
    y: Int64[np.ndarray, "a b"]
    commitments: Commitments
    term: Int64[np.ndarray, "a b"]


def encrypt_elements(
    encryption: LweEncryptionKey, x: Int64[np.ndarray, "a b"], *, rng: Csprng
) -> LweElementCiphertexts:
    """Encrypt a matrix of any shape.

    Raises ShapeError, RangeError.
    """
    x = np.array(x)
    public = encryption.public
    check_matrix("lwe: x", x, bound=public.bounds.x_bound)
    flat = np.zeros((_element_rows(x.shape, public), public.bounds.dim), np.int64)
    flat.reshape(-1)[: x.size] = x.reshape(-1)
    rows = encrypt_rows(encryption.element_z, flat, public.parameters, rng=rng)
    return LweElementCiphertexts(rows, (x.shape[0], x.shape[1]))


def keygen_elements(
    master: LweMasterKey, op: Op, y: Int64[np.ndarray, "a b"], *, commitments: Commitments
) -> LweElementKey:
    """The key of one operation with a known operand.

    The pad A Z^T of the entries is given with fresh noise: exact, it would be a linear system in
    Z. The noise is a function of the entry, so that asking again does not average it away; every
    key is a function of these same LWE samples.

    Raises ShapeError, RangeError, FunctionError (an unknown operation).
    """
    y = np.array(y)
    # The seed is read once: other noise on the same A could be averaged away.
    commitments = Commitments(bytes(commitments.seed), commitments.shape)
    encryption, public = master.encryption, master.encryption.public
    if op not in ("+", "-", "*", "/"):
        raise FunctionError(f"lwe: an operation is one of +, -, *, /, not {op!r}")
    check_matrix("lwe: y", y, bound=public.bounds.y_bound)
    if y.shape != commitments.shape:
        raise ShapeError(f"lwe: y is {y.shape}, the ciphertext {commitments.shape}")
    parameters, dim = public.parameters, public.bounds.dim
    rows = np.arange(_element_rows(y.shape, public), dtype=np.int64)
    a = uniform(commitments.seed, rows, parameters, A_DOMAIN)
    key = derive(encryption.seed, info=b"cloister lwe element noise" + commitments.seed)
    words = expand(key, rows, (2 * dim,), domain=_ELEMENT_NOISE_DOMAIN)
    noise = gaussian.from_words(
        words.astype("<u4", copy=False).view("<u8").astype(np.uint64), sigma=parameters.sigma
    )
    pads = (modular.product(a, encryption.element_z) + noise).reshape(-1)[: y.size]
    pads = pads.reshape(y.shape)
    scaled = y << np.int64(parameters.scale_bits)
    # Wraps modulo 2^64, a multiple of q.
    term = {"+": pads - scaled, "-": pads + scaled, "*": pads * y, "/": pads}[op]
    return LweElementKey(op, y, commitments, modular.centre(term, parameters.q_bits))


def decrypt_elements(
    public: LwePublic, key: LweElementKey, ciphertexts: LweElementCiphertexts
) -> Int64[np.ndarray, "a b"]:
    """x + y, x - y, x * y, or the exact quotient of x by y.

    Raises EncryptionError (another ciphertext), FunctionError (parameters that leave noise),
    RangeError (y does not divide).
    """
    if key.commitments != ciphertexts.commitments:
        raise EncryptionError("lwe: the key is for another ciphertext; ask for this one")
    if not public.exact:
        raise FunctionError("lwe: element-wise functions need exact parameters; use EXACT")
    values = ciphertexts.rows.values.reshape(-1)[: key.y.size].reshape(key.y.shape)
    if key.op == "*":
        values = values * key.y
    found = rounded(modular.centre(values - key.term, public.parameters.q_bits), public.parameters)
    return exact_quotient(found, key.y) if key.op == "/" else found


def _element_rows(shape: tuple[int, ...], public: LwePublic) -> int:
    return -(-shape[0] * shape[1] // public.bounds.dim)
