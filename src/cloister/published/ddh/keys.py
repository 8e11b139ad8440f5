"""Keys and ciphertexts of the schemes over a group."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.published.ddh.parameters import DdhPublic
from cloister.published.released import Released
from cloister.published.scheme import Op


@dataclass(frozen=True, repr=False, eq=False)
class DdhEncryptionKey:
    """The clients' key, which is public: g (and h), h_1 .. h_dim, and FEBO's own g^s.

    `points` has secrets + dim + 1 rows.
    """

    public: DdhPublic
    points: UInt8[np.ndarray, "rows element_bytes"]

    @property
    def inner(self) -> UInt8[np.ndarray, "rows element_bytes"]:
        """The rows of the inner-product scheme."""
        return self.points[:-1]

    @property
    def elements(self) -> UInt8[np.ndarray, "2 element_bytes"]:
        """G and FEBO's key."""
        return self.points[[0, -1]]


@dataclass(frozen=True, repr=False, eq=False)
class DdhMasterKey:
    """The authority's secret: `scalars` are s_1 .. s_dim, (t_1 .. t_dim,) and FEBO's s.

    `released` counts the functions that keys were made for.
    """

    public: DdhPublic
    scalars: UInt8[np.ndarray, "rows scalar_bytes"]
    released: Released

    def inner(self, which: int) -> UInt8[np.ndarray, "dim scalar_bytes"]:
        """S (0) or t (1)."""
        dim = self.public.bounds.dim
        return self.scalars[which * dim : (which + 1) * dim]

    @property
    def elements(self) -> UInt8[np.ndarray, "1 scalar_bytes"]:
        """FEBO's s."""
        return self.scalars[-1:]


@dataclass(frozen=True, eq=False)
class DdhCiphertexts:
    """n encrypted vectors: per row g^r, (h^r,) and h_j^r g^x_j."""

    public: DdhPublic
    elements: UInt8[np.ndarray, "n columns element_bytes"]

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """Row numbers: keys are not bound to ciphertexts."""
        return np.arange(len(self.elements), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DdhFunctionKey:
    """Keys of k vectors y: per vector sum_j y_j s_j (and sum_j y_j t_j)."""

    public: DdhPublic
    y: Int64[np.ndarray, "k dim"]
    scalars: UInt8[np.ndarray, "k secrets scalar_bytes"]


@dataclass(frozen=True, eq=False)
class DdhElementCiphertexts:
    """A matrix encrypted entry by entry: g^r and h^r g^x for every entry."""

    public: DdhPublic
    commitments: UInt8[np.ndarray, "a b element_bytes"]
    values: UInt8[np.ndarray, "a b element_bytes"]


@dataclass(frozen=True, eq=False)
class DdhElementKey:
    """One operation with a known operand on every entry of one ciphertext."""

    public: DdhPublic
    op: Op
    y: Int64[np.ndarray, "a b"]
    elements: UInt8[np.ndarray, "a b element_bytes"]
