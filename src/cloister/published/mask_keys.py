"""Keys and ciphertexts of the mask back end (see `cloister.published.mask`)."""

import threading
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.published.scheme import Bounds, Keys, Op


@dataclass(frozen=True, repr=False)
class MaskMasterKey:
    """The authority's half: it expands the pads of any sample.  Secret: key."""

    key: bytes
    bounds: Bounds


@dataclass(repr=False, eq=False)
class MaskEncryptionKey:
    """A client's half; hands out each sample number once.

    Secret   key. One object for each key: a second one would start again at sample 0 and reuse
             pads. A client that must survive restarts names its samples itself, with `blind`.
    """

    key: bytes
    bounds: Bounds
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, count: int) -> Int64[np.ndarray, " count"]:
        """Sample numbers never handed out before."""
        with self._lock:
            first = self._next
            self._next += count
        return np.arange(first, first + count, dtype=np.int64)


MaskKeys: TypeAlias = Keys[MaskMasterKey, MaskEncryptionKey, Bounds]


@dataclass(frozen=True, eq=False)
class MaskCiphertexts:
    """n blinded vectors and the samples they are."""

    values: UInt32[np.ndarray, "n dim"]
    ids: Int64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class MaskFunctionKey:
    """k vectors and the unmasking term of the named samples: of no use with any others."""

    y: Int64[np.ndarray, "k dim"]
    ids: Int64[np.ndarray, " n"]
    term: UInt32[np.ndarray, "n k"]


@dataclass(frozen=True, eq=False)
class MaskElementCiphertexts:
    """A blinded matrix; every row is a sample."""

    values: UInt32[np.ndarray, "a b"]
    ids: Int64[np.ndarray, " a"]

    @property
    def commitments(self) -> Int64[np.ndarray, " a"]:
        """What the authority needs to know of the ciphertext: which samples."""
        return self.ids


@dataclass(frozen=True, eq=False)
class MaskElementKey:
    """One operation, its operand and the unmasking term of the named rows."""

    op: Op
    y: Int64[np.ndarray, "a b"]
    ids: Int64[np.ndarray, " a"]
    term: UInt32[np.ndarray, "a b"]
