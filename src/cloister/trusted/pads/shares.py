"""A share of a pad as a worker may see it: digits whose products do not wrap, and their check.

The product of a uniform 32-bit share wraps modulo 2^32, and a check modulo a prime fails after
wrapping. A balanced digit is as small as an activation: `|A d| < 2^31`, so that the answer is an
integer and Freivalds' check applies as it stands. Proofs: docs/protocols/padfactory.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt32, UInt64

import cloister.base._native as native
from cloister.base.rng import Csprng
from cloister.errors import RangeError
from cloister.ring.freivalds import CheckVectors, draw_dense
from cloister.ring.linear import LinearMap
from cloister.wire.messages import TensorSpec

RING_BITS = 32
MAX_DIGIT_BITS = 16


@dataclass(frozen=True)
class DigitWidths:
    """How a word of Z_2^32 is written as balanced digits, lowest first.

    Domain   digit k lies in [-2^(w_k - 1), 2^(w_k - 1)); the widths w_k sum to 32
    """

    widths: tuple[int, ...]

    @staticmethod
    def of(linear: LinearMap) -> "DigitWidths":
        """The fewest digits d for which |A d| < 2^31 is proved, nearly equal in width.

        Raises   RangeError when even digits of one bit may wrap, which no plan contains
        """
        magnitudes = np.abs(linear.weights.astype(np.int64))
        largest = max(int(magnitudes.sum(axis=(1, 2, 3)).max()), 1)
        # 2^(width - 1) * largest <= 2^31 - 1.
        widest = min(((2**31 - 1) // largest).bit_length(), MAX_DIGIT_BITS)
        if widest < 1:
            raise RangeError("linear map: the weights' sum exceeds 2^31; lower --weight-bits")
        count = -(-RING_BITS // widest)
        low = -(-RING_BITS // count)
        rest = RING_BITS - low * (count - 1)
        # For every width from 1 to 16 the last digit has at least one bit.
        return DigitWidths((low,) * (count - 1) + (rest,))


class SharedNode:
    """A blinded node: how its shares are cut, and the secret check of its answers."""

    def __init__(self, index: int, name: str, linear: LinearMap) -> None:
        self.index = index
        self.name = name
        self.linear = linear
        self.geometry = linear.geometry
        self.digits = DigitWidths.of(linear)
        count = len(self.digits.widths)
        self.request = TensorSpec(np.dtype(np.int16), (count, *self.geometry.in_shape))
        self.answer = TensorSpec(np.dtype(np.uint32), (count, *self.geometry.out_shape))
        self.vectors: CheckVectors | None = None

    def draw(self, rng: Csprng) -> CheckVectors:
        """The check vectors; drawn when there are none."""
        if self.vectors is None:
            self.vectors = draw_dense(self.linear, rng=rng)
        return self.vectors

    def split(
        self,
        share: UInt32[np.ndarray, " words"],
        limbs: Int16[np.ndarray, "digits h w c"],
        *,
        vectors: CheckVectors,
    ) -> UInt64[np.ndarray, " digits"]:
        """Write a share's digits to `limbs`, each word once; `<t, digit> mod P52` of each."""
        sums = np.empty(len(limbs), np.uint64)
        flat = limbs.reshape(len(limbs), -1)
        native.split_share(share, vectors.rows.reshape(-1), self.digits.widths, flat, sums)
        return sums

    def add_answers(
        self,
        answers: UInt32[np.ndarray, "digits h w c"],
        out: UInt32[np.ndarray, "h w c"],
        *,
        vectors: CheckVectors,
    ) -> tuple[UInt32[np.ndarray, "h w c"], UInt64[np.ndarray, " digits"]]:
        """`out` with the digits' answers added, and `<s, answer> mod P52` of each, read as centred.

        They may lie in memory that the worker still writes: each word is read once, summed and
        added.
        """
        sums = np.empty(len(answers), np.uint64)
        native.add_answers(answers, vectors.a, vectors.b, self.digits.widths, out, sums)
        return out, sums

    def forget(self) -> None:
        """Overwrite the check vectors; `draw` draws new ones."""
        if self.vectors is not None:
            self.vectors.erase()
        self.vectors = None
