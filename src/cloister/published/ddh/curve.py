"""ristretto255 (RFC 9496), by the native kernel: prime order, no cofactor, unique encodings."""

import numpy as np
from jaxtyping import Int64, UInt8

import cloister.published._published_native as native
from cloister.base.rng import Csprng
from cloister.errors import EncryptionError
from cloister.published.ddh.groups import Elements
from cloister.published.dlog import MAX_CURVE_REACH, CurveLogarithm

BYTES = 32
_GENERATOR = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")
_POINTS_AT_ONCE = 2**18
"""Decoded points that a decryption holds in memory, at 160 bytes each."""


class Curve25519:
    """The group; every array that enters is decoded, and so checked, by the kernel."""

    order = 2**252 + 27742317777372353535851937790883648493
    element_bytes = BYTES
    scalar_bytes = BYTES
    max_logarithm = MAX_CURVE_REACH

    @property
    def generator(self) -> UInt8[np.ndarray, " 32"]:
        """The base point of RFC 9496."""
        return np.frombuffer(_GENERATOR, np.uint8)

    def check_elements(self, elements: Elements, *, what: str, identity: bool) -> None:
        """Refuse what is no canonical encoding (RFC 9496, 4.3.1), or is the identity.

        Raises   EncryptionError
        """
        flat = np.ascontiguousarray(elements).reshape(-1, BYTES)
        bad = native.curve_first_invalid(flat)
        if bad < len(flat):
            raise EncryptionError(f"{what}: element {bad} is not a canonical group element")
        if not identity and len(flat) and not flat.any(axis=1).all():
            where = int(np.argmin(flat.any(axis=1)))
            raise EncryptionError(f"{what}: element {where} is the identity")

    def random_scalars(self, n: int, *, rng: Csprng) -> UInt8[np.ndarray, "n 32"]:
        """512 bits each, reduced: the distance from uniform is below 2^-256."""
        wide = np.frombuffer(rng.random_bytes(2 * BYTES * n), np.uint8).reshape(n, 2 * BYTES)
        out = np.empty((n, BYTES), np.uint8)
        native.scalar_reduce(wide, out)
        return out

    def encode_scalars(self, values: list[int]) -> UInt8[np.ndarray, "n 32"]:
        """Little-endian."""
        data = b"".join((v % self.order).to_bytes(BYTES, "little") for v in values)
        return np.frombuffer(data, np.uint8).reshape(len(values), BYTES)

    def combine(
        self, secrets: UInt8[np.ndarray, "n 32"], y: Int64[np.ndarray, "k n"]
    ) -> UInt8[np.ndarray, "k 32"]:
        """sum_j y_kj s_j modulo the order.

        Secret   secrets.  Time: independent of values.
        """
        out = np.empty((len(y), BYTES), np.uint8)
        native.scalar_combine(np.ascontiguousarray(secrets), np.ascontiguousarray(y), out)
        return out

    def powers(
        self,
        points: UInt8[np.ndarray, "m 32"],
        scalars: UInt8[np.ndarray, "n 32"],
        *,
        plus: Int64[np.ndarray, "n m"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n m 32"]:
        """s_i P_j + plus_ij G.

        Secret   scalars, plus.  Public: points, bound >= |plus|.  Time: independent of secrets.
        """
        out = np.empty((len(scalars), len(points), BYTES), np.uint8)
        small = None if plus is None else np.ascontiguousarray(plus)
        native.curve_powers(
            np.ascontiguousarray(points),
            np.ascontiguousarray(scalars),
            small,
            bound,
            out,
            threads,
        )
        return out

    def sums(
        self,
        points: UInt8[np.ndarray, "n c 32"],
        scalars: UInt8[np.ndarray, "n c 32"],
        *,
        plus: Int64[np.ndarray, " n"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n 32"]:
        """sum_c s_ic P_ic + plus_i G.

        Secret   scalars, plus.  Public: points, bound >= |plus|.  Time: independent of secrets.
        """
        out = np.empty((len(points), BYTES), np.uint8)
        small = None if plus is None else np.ascontiguousarray(plus)
        native.curve_sums(
            np.ascontiguousarray(points),
            np.ascontiguousarray(scalars),
            points.shape[1],
            small,
            bound,
            out,
            threads,
        )
        return out

    def solve_products(
        self,
        points: UInt8[np.ndarray, "n c 32"],
        wide: UInt8[np.ndarray, "k w 32"],
        small: Int64[np.ndarray, "k s"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, "n k"]:
        """Logarithms of sum_j small_kj P_i,w+j - sum_j wide_kj P_ij.

        Public   everything: time depends on it all
        Raises   RangeError when one is larger than `bound`
        """
        points, wide = np.ascontiguousarray(points), np.ascontiguousarray(wide)
        small = np.ascontiguousarray(small)
        logarithm = CurveLogarithm(-bound, bound)
        rows = max(8, _POINTS_AT_ONCE // (points.shape[1] + len(small)) // 8 * 8)
        if len(points) <= rows:
            return logarithm.solve_products(points, wide, small, threads=threads)
        parts = [
            logarithm.solve_products(points[i : i + rows], wide, small, threads=threads)
            for i in range(0, len(points), rows)
        ]
        return np.concatenate(parts)

    def solve_differences(
        self,
        points: UInt8[np.ndarray, "n 32"],
        scalars: UInt8[np.ndarray, "n 32"] | Int64[np.ndarray, " n"],
        subtrahends: UInt8[np.ndarray, "n 32"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, " n"]:
        """Logarithms of s_i P_i - Q_i.

        Public   everything
        Raises   RangeError when one is larger than `bound`
        """
        return CurveLogarithm(-bound, bound).solve_differences(
            np.ascontiguousarray(points),
            np.ascontiguousarray(scalars),
            np.ascontiguousarray(subtrahends),
            threads=threads,
        )
