"""The groups in which decisional Diffie-Hellman is believed hard, as batches of encodings.

Elements and scalars travel as arrays of bytes. Which groups exist is decided here and nowhere
else: there is no way to hand in parameters, so no toy group and no pairing (where the assumption
is false) can get in.
"""

from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.base.rng import Csprng

GroupName: TypeAlias = Literal["curve25519", "ffdhe2048"]
Elements: TypeAlias = UInt8[np.ndarray, "*shape element_bytes"]
Scalars: TypeAlias = UInt8[np.ndarray, "*shape scalar_bytes"]


@runtime_checkable
class Group(Protocol):
    """A group of prime order, written additively: P, Q elements, s scalars, G the generator."""

    @property
    def order(self) -> int:
        """Number of elements, prime."""
        ...

    @property
    def element_bytes(self) -> int:
        """Size of an encoded element."""
        ...

    @property
    def scalar_bytes(self) -> int:
        """Size of an encoded scalar."""
        ...

    @property
    def max_logarithm(self) -> int:
        """Largest number that decryption can find."""
        ...

    @property
    def generator(self) -> UInt8[np.ndarray, " element_bytes"]:
        """G."""
        ...

    def check_elements(self, elements: Elements, *, what: str, identity: bool) -> None:
        """Refuse what is no canonical encoding of an element (or is the identity).

        Raises EncryptionError.
        """
        ...

    def random_scalars(self, n: int, *, rng: Csprng) -> UInt8[np.ndarray, "n scalar_bytes"]:
        """Uniform scalars."""
        ...

    def encode_scalars(self, values: list[int]) -> UInt8[np.ndarray, "n scalar_bytes"]:
        """Public numbers modulo the order."""
        ...

    def combine(
        self, secrets: UInt8[np.ndarray, "n scalar_bytes"], y: Int64[np.ndarray, "k n"]
    ) -> UInt8[np.ndarray, "k scalar_bytes"]:
        """sum_j y_kj s_j modulo the order.  Secret: s."""
        ...

    def powers(
        self,
        points: UInt8[np.ndarray, "m element_bytes"],
        scalars: UInt8[np.ndarray, "n scalar_bytes"],
        *,
        plus: Int64[np.ndarray, "n m"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n m element_bytes"]:
        """s_i P_j + plus_ij G.  Secret: s, and plus but for its bound."""
        ...

    def sums(
        self,
        points: UInt8[np.ndarray, "n c element_bytes"],
        scalars: UInt8[np.ndarray, "n c scalar_bytes"],
        *,
        plus: Int64[np.ndarray, " n"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n element_bytes"]:
        """sum_c s_ic P_ic + plus_i G.  Secret: s, and plus but for its bound."""
        ...

    def solve_products(
        self,
        points: UInt8[np.ndarray, "n c element_bytes"],
        wide: UInt8[np.ndarray, "k w scalar_bytes"],
        small: Int64[np.ndarray, "k s"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, "n k"]:
        """Logarithms of sum_j small_kj P_i,w+j - sum_j wide_kj P_ij; all of it public.

        Raises RangeError when one is larger than `bound`.
        """
        ...

    def solve_differences(
        self,
        points: UInt8[np.ndarray, "n element_bytes"],
        scalars: UInt8[np.ndarray, "n scalar_bytes"] | Int64[np.ndarray, " n"],
        subtrahends: UInt8[np.ndarray, "n element_bytes"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, " n"]:
        """Logarithms of s_i P_i - Q_i; all of it public.

        Raises RangeError when one is larger than `bound`.
        """
        ...
