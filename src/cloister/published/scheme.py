"""The one interface of the three back ends of functional encryption.

A back end is a module: `ddh`, `lwe` and `mask` are values of the protocols below, checked by the
type checker where `cloister.published.matrix` takes them. The types state the difference: a `mask`
key is bound to the ciphertexts named by `ciphertexts_ids`, the other keys serve any ciphertext.
"""

from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64

from cloister.base.rng import Csprng
from cloister.errors import RangeError, ShapeError

Op = Literal["+", "-", "*", "/"]

MasterT = TypeVar("MasterT")
EncryptionT = TypeVar("EncryptionT")
PublicT = TypeVar("PublicT")
CiphertextsT = TypeVar("CiphertextsT")
KeyT = TypeVar("KeyT")
MasterIn = TypeVar("MasterIn", contravariant=True)
EncryptionIn = TypeVar("EncryptionIn", contravariant=True)
PublicIn = TypeVar("PublicIn", contravariant=True)
MasterOut = TypeVar("MasterOut", covariant=True)
EncryptionOut = TypeVar("EncryptionOut", covariant=True)
PublicOut = TypeVar("PublicOut", covariant=True)


@runtime_checkable
class KeySet(Protocol[MasterOut, EncryptionOut, PublicOut]):
    """What every back end's `setup` returns, whatever class it is."""

    @property
    def master(self) -> MasterOut:
        """The authority's."""
        ...

    @property
    def encryption(self) -> EncryptionOut:
        """The clients'."""
        ...

    @property
    def public(self) -> PublicOut:
        """Everyone's."""
        ...


@dataclass(frozen=True)
class Keys(Generic[MasterT, EncryptionT, PublicT]):
    """What `setup` makes: the authority keeps `master`, clients get `encryption`."""

    master: MasterT
    encryption: EncryptionT
    public: PublicT


@dataclass(frozen=True)
class Bounds:
    """The public statement of what is encrypted: dimension and magnitudes."""

    dim: int
    x_bound: int
    y_bound: int

    @property
    def product_bound(self) -> int:
        """Largest magnitude of an inner product."""
        return self.dim * self.x_bound * self.y_bound


@runtime_checkable
class InnerProduct(Protocol[MasterIn, EncryptionIn, PublicIn, CiphertextsT, KeyT]):
    """FEIP: the holder of the key of y and of a ciphertext of x learns the product of x and y."""

    def encrypt(
        self, encryption: EncryptionIn, x: Int64[np.ndarray, "n dim"], *, rng: Csprng
    ) -> CiphertextsT:
        """Encrypt n vectors."""
        ...

    def keygen(
        self,
        master: MasterIn,
        y: Int64[np.ndarray, "k dim"],
        *,
        ciphertexts_ids: Int64[np.ndarray, " n"] | None = None,
    ) -> KeyT:
        """The function key of k vectors."""
        ...

    def decrypt(
        self, public: PublicIn, key: KeyT, ciphertexts: CiphertextsT
    ) -> Int64[np.ndarray, "n k"]:
        """Every inner product, exactly."""
        ...


@runtime_checkable
class Committed(Protocol):
    """Element-wise ciphertexts: the authority needs a part of them to make a key."""

    @property
    def commitments(self) -> Any:  # noqa: ANN401  (each back end has its own)
        """That part: sample numbers, a seed, or group elements."""
        ...


ElementsT = TypeVar("ElementsT", bound=Committed)


@runtime_checkable
class ElementWise(Protocol[MasterIn, EncryptionIn, PublicIn, ElementsT, KeyT]):
    """FEBO: one operation with a known operand on each entry, which is plain decryption."""

    def encrypt_elements(
        self, encryption: EncryptionIn, x: Int64[np.ndarray, "a b"], *, rng: Csprng
    ) -> ElementsT:
        """Encrypt a matrix entry by entry."""
        ...

    def keygen_elements(
        self,
        master: MasterIn,
        op: Op,
        y: Int64[np.ndarray, "a b"],
        *,
        commitments: Any,  # noqa: ANN401  (as in Committed)
    ) -> KeyT:
        """The key of one operation for this ciphertext."""
        ...

    def decrypt_elements(
        self, public: PublicIn, key: KeyT, ciphertexts: ElementsT
    ) -> Int64[np.ndarray, "a b"]:
        """x op y."""
        ...


def check_bounds(bounds: Bounds, *, limit: int, back_end: str) -> Bounds:
    """Bounds whose products stay below `limit`.

    Raises RangeError.
    """
    if min(bounds.dim, bounds.x_bound, bounds.y_bound) < 1:
        raise RangeError(f"{back_end}: dimension and bounds must be at least 1, got {bounds}")
    if bounds.product_bound >= limit:
        raise RangeError(
            f"{back_end}: dim * x_bound * y_bound = {bounds.product_bound} must be below {limit}; "
            "encode with fewer bits"
        )
    return bounds


def check_matrix(
    name: str, values: Int64[np.ndarray, "rows dim"], *, bound: int, columns: int | None = None
) -> None:
    """Refuse what is not an int64 matrix of magnitudes up to `bound`.

    Raises ShapeError, RangeError.
    """
    if values.ndim != 2 or values.dtype != np.int64:
        raise ShapeError(f"{name} must be an int64 matrix, got {values.dtype} {values.shape}")
    if columns is not None and values.shape[1] != columns:
        raise ShapeError(f"{name} must have {columns} columns, got {values.shape[1]}")
    # Compared on both sides: the magnitude of the smallest int64 does not fit an int64.
    if values.size and (int(values.max()) > bound or int(values.min()) < -bound):
        raise RangeError(f"{name}: an entry is larger than the stated bound {bound}")


def check_pair(name: str, y: Int64[np.ndarray, "a b"], ids: Int64[np.ndarray, " a"]) -> None:
    """Refuse an operand that has not one row for each sample.

    Raises ShapeError.
    """
    if ids.shape != y.shape[:1]:
        raise ShapeError(f"{name} has {y.shape[0]} rows for {ids.shape} samples")


def exact_quotient(
    x: Int64[np.ndarray, "a b"], y: Int64[np.ndarray, "a b"]
) -> Int64[np.ndarray, "a b"]:
    """q with x = q * y.

    Raises RangeError when an entry of y is zero or does not divide.
    """
    if not y.all():
        raise RangeError("element-wise division: an operand is zero")
    quotient: Int64[np.ndarray, "a b"] = x // y
    if (quotient * y != x).any():
        raise RangeError("element-wise division: an operand does not divide its value exactly")
    return quotient
