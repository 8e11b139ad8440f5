"""Bytes of keys and ciphertexts: a fixed header that states every size, then arrays in order.

Reading is strict: the length follows from the header and is checked before anything is
allocated, every element is decoded, every scalar and number compared with its bound. What was not
written by `pack` does not get in.
"""

import struct
from enum import IntEnum
from math import prod

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.errors import CloisterError, EncryptionError
from cloister.published.ddh.groups import GroupName
from cloister.published.ddh.parameters import Public, Variant
from cloister.published.scheme import Bounds, Op

_HEADER = struct.Struct("<8sBBBxIQQQQ")
_MAGIC = b"cloi-ddh"
_GROUPS: dict[GroupName, int] = {"curve25519": 1, "ffdhe2048": 2}
_VARIANTS: dict[Variant, int] = {"selective": 1, "adaptive": 2}


class Kind(IntEnum):
    """What the bytes are."""

    ENCRYPTION_KEY = 1
    MASTER_KEY = 2
    CIPHERTEXTS = 3
    FUNCTION_KEY = 4
    ELEMENT_CIPHERTEXTS = 5
    ELEMENT_KEY_PLUS = 6
    ELEMENT_KEY_MINUS = 7
    ELEMENT_KEY_TIMES = 8
    ELEMENT_KEY_OVER = 9


ELEMENT_KEYS: dict[Op, Kind] = {
    "+": Kind.ELEMENT_KEY_PLUS,
    "-": Kind.ELEMENT_KEY_MINUS,
    "*": Kind.ELEMENT_KEY_TIMES,
    "/": Kind.ELEMENT_KEY_OVER,
}


def element_operation(data: bytes) -> tuple[Op, Kind]:
    """The operation that the header of an element key names.

    Raises EncryptionError.
    """
    for op, kind in ELEMENT_KEYS.items():
        if data[len(_MAGIC) : len(_MAGIC) + 1] == bytes([kind]):
            return op, kind
    raise EncryptionError("ddh: these bytes are no key of an element-wise operation")


def pack(
    kind: Kind,
    public: Public,
    shape: tuple[int, int],
    *arrays: UInt8[np.ndarray, "..."] | Int64[np.ndarray, "..."],
) -> bytes:
    """Header and arrays; numbers little-endian."""
    bounds = public.bounds
    header = _HEADER.pack(
        _MAGIC,
        kind,
        _GROUPS[public.group_name],
        _VARIANTS[public.variant],
        bounds.dim,
        bounds.x_bound,
        bounds.y_bound,
        *shape,
    )
    little = [a.astype("<i8") if a.dtype == np.int64 else a for a in arrays]
    return header + b"".join(np.ascontiguousarray(a).tobytes() for a in little)


class Reader:
    """The arrays of one object, in order; `shape` is what the header must say, None for anything.

    Raises   EncryptionError, also from every method
    """

    def __init__(
        self, data: bytes, kind: Kind, *, shape: tuple[int | None, int | None] = (None, None)
    ) -> None:
        data = bytes(data)  # a buffer could change after it was checked
        self._what = f"ddh {kind.name.lower().replace('_', ' ')}"
        if len(data) < _HEADER.size:
            raise EncryptionError(f"{self._what}: the bytes end within the header")
        magic, number, group, variant, dim, x_bound, y_bound, a, b = _HEADER.unpack_from(data)
        if magic != _MAGIC or number != kind or data[11] != 0:
            raise EncryptionError(f"{self._what}: these bytes are something else")
        groups = {code: name for name, code in _GROUPS.items()}
        variants = {code: name for name, code in _VARIANTS.items()}
        if group not in groups or variant not in variants:
            raise EncryptionError(f"{self._what}: unknown group {group} or variant {variant}")
        try:
            self.public = Public(groups[group], variants[variant], Bounds(dim, x_bound, y_bound))
        except CloisterError as error:
            raise EncryptionError(f"{self._what}: {error}") from None
        if any(want not in (None, have) for want, have in zip(shape, (a, b), strict=True)):
            raise EncryptionError(f"{self._what}: the header states an impossible shape")
        self.shape = (a, b)
        self._data, self._at = data, _HEADER.size

    def elements(self, shape: tuple[int, ...], *, identity: bool) -> UInt8[np.ndarray, "*shape"]:
        """Group elements, checked."""
        group = self.public.group
        array = self._bytes((*shape, group.element_bytes))
        group.check_elements(array, what=self._what, identity=identity)
        return array

    def scalars(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
        """Scalars below the group's order."""
        group = self.public.group
        array = self._bytes((*shape, group.scalar_bytes))
        group.check_scalars(array, what=self._what)
        return array

    def numbers(self, shape: tuple[int, ...], *, bound: int) -> Int64[np.ndarray, "*shape"]:
        """Integers up to a bound."""
        array = np.frombuffer(self._take(8 * prod(shape)), "<i8").astype(np.int64).reshape(shape)
        if array.size and (int(array.max()) > bound or int(array.min()) < -bound):
            raise EncryptionError(f"{self._what}: a number is larger than the stated bound {bound}")
        return array

    def state(self, count: int) -> bytes:
        """Bytes that have a strict form of their own."""
        return self._take(count)

    def end(self) -> None:
        """Refuse bytes that are left over."""
        if self._at != len(self._data):
            raise EncryptionError(f"{self._what}: {len(self._data) - self._at} bytes too many")

    def _bytes(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
        return np.frombuffer(self._take(prod(shape)), np.uint8).reshape(shape)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise EncryptionError(f"{self._what}: the bytes end early")
        self._at += count
        return self._data[self._at - count : self._at]
