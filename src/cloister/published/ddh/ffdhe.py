"""The 2048-bit group ffdhe2048 (RFC 7919): squares modulo a safe prime, order q = (p - 1) / 2.

The paper's kind of group, for comparison: an operation costs about a thousand times as much as on
the curve. Needs gmpy2 (extra `fe`), whose `powmod_sec` takes the same time for all exponents of a
size; sums and products of scalars are ordinary integer arithmetic and do not.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.base.rng import Csprng
from cloister.errors import EncryptionError, UnsupportedError
from cloister.published.ddh.groups import Elements
from cloister.published.dlog import MAX_MODULAR_REACH, ModularLogarithm

BYTES = 256

# RFC 7919, appendix A.1: p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1.
P = int(
    "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695"
    "A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A"
    "D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935"
    "984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A"
    "BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4"
    "AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61"
    "9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005"
    "C58EF1837D1683B2C6F34A26C1B2EFFA886B423861285C97FFFFFFFFFFFFFFFF",
    16,
)

_gmpy2: Any = importlib.import_module("gmpy2") if importlib.util.find_spec("gmpy2") else None


class Ffdhe2048:
    """The group; big-endian encodings of 256 bytes."""

    modulus = P
    order = (P - 1) // 2
    element_bytes = BYTES
    scalar_bytes = BYTES
    max_logarithm = MAX_MODULAR_REACH

    def __init__(self) -> None:
        if _gmpy2 is None:
            raise UnsupportedError(
                "ddh: the group ffdhe2048 needs gmpy2: pip install 'cloister[fe]', or use the "
                "group curve25519"
            )

    # 2 is a square, because p = 7 modulo 8, and so generates the subgroup of order q.
    base = 2

    @property
    def generator(self) -> UInt8[np.ndarray, " 256"]:
        """The number 2."""
        first: UInt8[np.ndarray, " 256"] = self._encode([self.base])[0]
        return first

    def check_elements(self, elements: Elements, *, what: str, identity: bool) -> None:
        """Refuse numbers outside 1 .. p - 1, non-squares, and the identity 1.

        A number not reduced modulo p is refused here: public code multiplied ciphertexts and sent
        the integer product, whose factors anyone can divide out.

        Raises   EncryptionError
        """
        for i, v in enumerate(self._decode(elements)):
            if not 0 < v < P or _gmpy2.jacobi(v, P) != 1:
                raise EncryptionError(f"{what}: element {i} is not in the subgroup of order q")
            if v == 1 and not identity:
                raise EncryptionError(f"{what}: element {i} is the identity")

    def random_scalars(self, n: int, *, rng: Csprng) -> UInt8[np.ndarray, "n 256"]:
        """Twice 2048 bits each, reduced: the distance from uniform is below 2^-2000."""
        data = rng.random_bytes(2 * BYTES * n)
        size = 2 * BYTES
        wide = [int.from_bytes(data[i : i + size], "big") for i in range(0, len(data), size)]
        return self.encode_scalars(wide)

    def encode_scalars(self, values: list[int]) -> UInt8[np.ndarray, "n 256"]:
        """Big-endian, modulo the order."""
        return self._encode([v % self.order for v in values])

    def combine(
        self, secrets: UInt8[np.ndarray, "n 256"], y: Int64[np.ndarray, "k n"]
    ) -> UInt8[np.ndarray, "k 256"]:
        """sum_j y_kj s_j modulo the order.

        Secret   secrets.  Time: not independent of them (integer arithmetic).
        """
        s = self._decode(secrets)
        return self.encode_scalars(
            [sum(int(a) * b for a, b in zip(row, s, strict=True)) for row in y]
        )

    def powers(
        self,
        points: UInt8[np.ndarray, "m 256"],
        scalars: UInt8[np.ndarray, "n 256"],
        *,
        plus: Int64[np.ndarray, "n m"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n m 256"]:
        """P_j^s_i 2^plus_ij.  Secret: scalars, plus."""
        bases, exponents = self._decode(points), self._decode(scalars)
        small = np.zeros((len(exponents), len(bases)), np.int64) if plus is None else plus
        values = [
            self._power(base, e) * self._small_power(int(small[i, j]), plus) % P
            for i, e in enumerate(exponents)
            for j, base in enumerate(bases)
        ]
        return self._encode(values).reshape(len(exponents), len(bases), BYTES)

    def sums(
        self,
        points: UInt8[np.ndarray, "n c 256"],
        scalars: UInt8[np.ndarray, "n c 256"],
        *,
        plus: Int64[np.ndarray, " n"] | None = None,
        bound: int = 0,
        threads: int = 1,
    ) -> UInt8[np.ndarray, "n 256"]:
        """prod_c P_ic^s_ic 2^plus_i.  Secret: scalars, plus."""
        values = []
        for i in range(len(points)):
            value = self._small_power(0 if plus is None else int(plus[i]), plus)
            for base, e in zip(self._decode(points[i]), self._decode(scalars[i]), strict=True):
                value = value * self._power(base, e) % P
            values.append(value)
        return self._encode(values)

    def solve_products(
        self,
        points: UInt8[np.ndarray, "n c 256"],
        wide: UInt8[np.ndarray, "k w 256"],
        small: Int64[np.ndarray, "k s"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, "n k"]:
        """Logarithms of prod_j P_i,w+j^small_kj / prod_j P_ij^wide_kj; all public."""
        values = []
        for row in points:
            bases = [_gmpy2.mpz(v) for v in self._decode(row)]
            for k in range(len(small)):
                exponents = [-s for s in self._decode(wide[k])] + [int(s) for s in small[k]]
                value = _gmpy2.mpz(1)
                for base, e in zip(bases, exponents, strict=True):
                    value = value * _gmpy2.powmod(base, e, P) % P
                values.append(int(value))
        return self._logarithms(values, bound).reshape(len(points), len(small))

    def solve_differences(
        self,
        points: UInt8[np.ndarray, "n 256"],
        scalars: UInt8[np.ndarray, "n 256"] | Int64[np.ndarray, " n"],
        subtrahends: UInt8[np.ndarray, "n 256"],
        *,
        bound: int,
        threads: int = 1,
    ) -> Int64[np.ndarray, " n"]:
        """Logarithms of P_i^s_i / Q_i; all public."""
        wide = scalars.dtype == np.uint8
        exponents = self._decode(scalars) if wide else [int(s) for s in scalars]
        values = [
            int(_gmpy2.powmod(p, e, P) * _gmpy2.invert(q, P) % P)
            for p, e, q in zip(
                self._decode(points), exponents, self._decode(subtrahends), strict=True
            )
        ]
        return self._logarithms(values, bound)

    def _logarithms(self, values: list[int], bound: int) -> Int64[np.ndarray, " n"]:
        logarithm = ModularLogarithm(P, self.base, lo=-bound, hi=bound)
        return np.array(logarithm.solve(values), np.int64)

    def _power(self, base: int, exponent: int) -> int:
        # The same element for exponents e and e + q; powmod_sec wants a positive one.
        return int(_gmpy2.powmod_sec(base, exponent + self.order, P))

    def _small_power(self, exponent: int, wanted: Int64[np.ndarray, "*shape"] | None) -> int:
        return 1 if wanted is None else self._power(self.base, exponent % self.order)

    def _encode(self, values: list[int]) -> UInt8[np.ndarray, "n 256"]:
        data = b"".join(int(v).to_bytes(BYTES, "big") for v in values)
        return np.frombuffer(data, np.uint8).reshape(len(values), BYTES)

    def _decode(self, encodings: UInt8[np.ndarray, "*shape 256"]) -> list[int]:
        data = np.ascontiguousarray(encodings).tobytes()
        return [int.from_bytes(data[i : i + BYTES], "big") for i in range(0, len(data), BYTES)]
